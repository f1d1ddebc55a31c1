"""One contract for every method, one golden 2 x 3 matrix each."""

import inspect
from pathlib import Path

import pytest
import torch
import yaml

from dowser_pl import methods
from dowser_pl.callbacks import Dowser
from dowser_pl.methods import (
    FAPM,
    AfterFit,
    BeforeFit,
    Dare,
    EachStep,
    Full,
    Grafting,
    HalfFineTuning,
    HighestImportance,
    Layer,
    Lora,
    Magnitude,
    Method,
    ModelDowser,
    ModelTailor,
    Random,
    Ties,
    WandaLike,
    Wise,
    build_masks,
)

ALL = [
    cls
    for _, cls in inspect.getmembers(methods, inspect.isclass)
    if issubclass(cls, (BeforeFit, AfterFit)) and not inspect.isabstract(cls)
]
WEIGHT = torch.tensor([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]])
GOLDEN = {
    # |W|: .25 and .5 are smallest
    Magnitude: [[False, False, True], [True, False, False]],
    # |W| * outer([4, 1], [1, 1, 9]): [[4, 8, 18], [.25, 3, 9]]
    ModelDowser: [[False, False, False], [True, True, False]],
    Random: [[False, True, False], [False, False, True]],
    # alone it trains or does not, by a coin of seed and module
    HalfFineTuning: [[False] * 3, [False] * 3],
    Full: [[True] * 3, [True] * 3],
    # |W| * [1, 1, 9]: [[1, 2, 4.5], [.25, 3, 9]]
    WandaLike: [[True, False, False], [True, False, False]],
    # the other end of ModelDowser's
    HighestImportance: [[False, False, True], [False, False, True]],
    # of the moves .5 and -.75 are largest
    Grafting: [[True, False, False], [False, True, False]],
    Ties: [[True, False, False], [False, True, False]],
    # |D| (1 - 1.29 / |W|): [[-.15, .04, -.32], [-.21, .43, -.09]]
    FAPM: [[False, True, False], [False, True, False]],
    Dare: [[False, True, False], [False, True, False]],
    Wise: [[True] * 3, [True] * 3],
    # trains adapters, all of them
    Lora: [[True] * 3, [True] * 3],
    # H is the unit matrix, so sensitivity is the square of the move; fused: [[1.13, -.74, -.39], [-.80, 1.11, -.31]]
    ModelTailor: [[True, False, False], [False, True, False]],
}
MOVES = torch.tensor([[0.5, -0.1, 0.2], [0.05, -0.75, 0.3]])
RATIOED = [cls for cls in ALL if "update_ratio" in inspect.signature(cls).parameters]


def layer(shape=(2, 3), weight=None):
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(shape, generator=generator) if weight is None else weight
    return Layer(
        "decoder.layers.0.q_proj",
        weight,
        activation=torch.rand(6, shape[1], generator=generator),
        abs_gradient=torch.rand(6, shape[0], generator=generator),
        square_gradient=torch.rand(6, shape[0], generator=generator),
        tuned=weight + torch.randn(shape, generator=generator),
        input_gram=torch.cov(torch.rand(shape[1], 40, generator=generator)),
    )


def build(cls: type[Method], ratio: float) -> Method:
    return cls(update_ratio=ratio) if "update_ratio" in inspect.signature(cls).parameters else cls()


def test_every_method_has_a_golden_row():
    assert set(ALL) == set(GOLDEN)


@pytest.mark.parametrize("cls", ALL)
def test_golden(cls):
    golden = Layer(
        "m",
        WEIGHT,
        activation=torch.tensor([[1.0, 1.0, 9.0]]),
        abs_gradient=torch.tensor([[4.0, 1.0]]),
        square_gradient=torch.tensor([[16.0, 1.0]]),
        tuned=WEIGHT + MOVES,
        input_gram=torch.eye(3) / 2,
    )
    method = build(cls, 1 / 3)
    assert method.mask(golden).tolist() == GOLDEN[cls]
    assert type(method).__name__ == method.settings()["method"]
    assert method.reference.title


@pytest.mark.parametrize("estimator", ["paper", "authors", "token", "weight"])
def test_model_dowser_scores_by_hand(estimator):
    layer = Layer(
        "m",
        WEIGHT,
        activation=torch.tensor([[1.0, 0.0, 2.0], [3.0, 2.0, 0.0]]),
        abs_gradient=torch.tensor([[1.0, 2.0], [3.0, 0.0]]),
        square_gradient=torch.tensor([[4.0, 9.0], [16.0, 0.0]]),
        token_product=torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        weight_square=torch.tensor([[1.0, 4.0, 9.0], [16.0, 0.0, 1.0]]),
    )
    expected = {
        # roots, products, then the mean: outer([2,3],[1,0,2]) and outer([4,0],[3,2,0])
        "paper": [[7.0, 4.0, 2.0], [1.5, 0.0, 3.0]],
        # outer([1,2],[1,0,2]) and outer([3,0],[3,2,0]); rows are the means of a group already
        "authors": [[5.0, 3.0, 1.0], [1.0, 0.0, 2.0]],
        "token": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
        "weight": [[1.0, 2.0, 3.0], [4.0, 0.0, 1.0]],
    }
    assert torch.equal(ModelDowser(estimator=estimator).score(layer), WEIGHT.abs() * torch.tensor(expected[estimator]))


@pytest.mark.parametrize("ratio", [0.0, 1e-6, 0.1, 1.0])
@pytest.mark.parametrize("cls", ALL)
def test_contract(cls, ratio):
    method = build(cls, ratio)
    for weight in (None, torch.zeros(12, 10), (torch.arange(120.0).view(12, 10) % 3)):  # ties too
        matrix = layer((12, 10), weight)
        before = matrix.weight.clone()
        mask = method.mask(matrix)
        assert mask.shape == (12, 10) and mask.dtype == torch.bool
        wanted = round((1.0 if method.update_ratio is None else method.update_ratio) * 120)
        assert int(mask.sum()) in ({0, 120} if cls is HalfFineTuning and 0 < ratio < 1 else {wanted})
        assert torch.equal(mask, method.mask(matrix)), "same input, same mask"
        assert torch.equal(matrix.weight, before), "the weight is read, never written"


@pytest.mark.parametrize("cls", RATIOED)
@pytest.mark.parametrize("ratio", [-0.5, 1.5, float("nan")])
def test_a_ratio_outside_0_and_1_is_refused_when_the_method_is_made(cls, ratio):
    with pytest.raises(ValueError, match=r"update_ratio .* \[0, 1\]"):
        cls(update_ratio=ratio)


@pytest.mark.parametrize("estimator", ["authors", "paper", "token", "weight"])
def test_a_weight_without_a_score_is_an_error(estimator):
    with pytest.raises(ValueError, match="was not measured"):
        ModelDowser(estimator=estimator).mask(Layer("decoder.layers.0.q_proj", WEIGHT))


def test_merge_needs_tuned_weights_and_keeps_frozen_bits():
    method = Grafting(1 / 3)
    mask = torch.tensor([[False, False, True], [True, False, False]])
    with pytest.raises(ValueError, match="no tuned"):
        method.merge(Layer("m", WEIGHT), mask)
    merged = method.merge(Layer("m", WEIGHT, tuned=WEIGHT + 1), mask)
    assert merged.tolist() == [[1.0, -2.0, 1.5], [1.25, 3.0, -1.0]]


def test_random_masks_belong_to_seed_and_name():
    a, b = layer((30, 30)), Layer("another", layer((30, 30)).weight)
    assert not torch.equal(Random(0.5).mask(a), Random(0.5).mask(b))
    assert not torch.equal(Random(0.5, seed=1).mask(a), Random(0.5).mask(a))


def halved(names, **options):
    layers = {name: Layer(name, torch.ones(2, 3)) for name in names}
    masks = dict(build_masks(HalfFineTuning(**options), dict.fromkeys(names, "layer"), layers.__getitem__))
    assert list(masks) == list(names)
    assert all(mask.shape == (2, 3) and len(mask.unique()) == 1 for mask in masks.values())
    return {name for name, mask in masks.items() if bool(mask.all())}


def test_half_of_the_matrices_of_every_module_train_and_over_layers_half_of_all():
    attention = [f"model.layers.{n}.self_attn.{m}_proj" for n in range(300) for m in "qkvo"]
    mlp = [f"model.layers.{n}.mlp.{m}_proj" for n in range(300) for m in ("gate", "up", "down")]
    trained = halved(attention + mlp)
    counts = {}
    for name in attention + mlp:
        module = name.rpartition(".")[0]
        counts[module] = counts.get(module, 0) + (name in trained)
    assert {count for module, count in counts.items() if module.endswith("attn")} == {2}
    two = sum(count == 2 for module, count in counts.items() if module.endswith("mlp"))
    assert {count for module, count in counts.items() if module.endswith("mlp")} == {1, 2} and 115 < two < 185
    for part in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        assert 115 < sum(name.endswith(part) for name in trained) < 185, "each is as likely as the others"


def test_which_half_trains_belongs_to_seed_and_names():
    names = [f"layers.{n}.{m}" for n in range(8) for m in ("attn.qkv", "attn.out", "fc1", "fc2")]
    first = halved(names)
    assert first == halved(names[::-1]) and len(first) == 16
    assert {name for name in first if "layers.3" in name} == halved([name for name in names if "layers.3" in name])
    assert first != halved(names, seed=1)
    assert halved(names, update_ratio=0.0) == set() and halved(names, update_ratio=1.0) == set(names)
    assert len(halved(names, update_ratio=0.999)) >= 24


@pytest.mark.parametrize("norm", ["mean", "rms"])
def test_wanda_like_scores_by_hand(norm):
    layer = Layer("m", WEIGHT, activation=torch.tensor([[1.0, 0.0, 2.0], [3.0, 2.0, 0.0]]))
    expected = {"mean": [2.0, 1.0, 1.0], "rms": [5**0.5, 2**0.5, 2**0.5]}[norm]
    torch.testing.assert_close(WandaLike(norm=norm).score(layer), WEIGHT.abs() * torch.tensor(expected))
    with pytest.raises(ValueError, match="no activation"):
        WandaLike().mask(Layer("m", WEIGHT))


def test_the_control_trains_what_model_dowser_protects_most():
    matrix = layer((12, 10))
    for ratio in (0.1, 0.5, 0.9):
        assert torch.equal(HighestImportance(ratio).mask(matrix), ~ModelDowser(1 - ratio).mask(matrix))


CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "method").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_names_a_method_and_its_options(path):
    config = yaml.safe_load(path.read_text())["dowser"]["method"]
    cls = getattr(methods, config["class_path"])
    assert cls in ALL or issubclass(cls, EachStep)
    nested = {"null_space": methods.NullSpaceSettings, "start": methods.LoraStart}
    options = {k: nested[k](**v) if k in nested else v for k, v in config.get("init_args", {}).items()}
    assert cls(**options).settings()["method"] == config["class_path"]


def test_options_that_do_not_exist_are_named():
    for cls, option in (
        (Ties, "undecided"),
        (WandaLike, "norm"),
        (ModelTailor, "selection"),
        (ModelTailor, "sensitivity"),
        (ModelTailor, "compensation_sign"),
    ):
        with pytest.raises(ValueError, match=f"{option} must be one of"):
            cls(**{option: "other"})
    for cls, options in (
        (Wise, {"alpha": 1.5}),
        (ModelTailor, {"fusion": -0.1}),
        (ModelTailor, {"damping": 0.0}),
        (ModelTailor, {"block_size": 0}),
    ):
        with pytest.raises(ValueError, match=f"got .*{next(iter(options.values()))}"):
            cls(**options)
    with pytest.raises(ValueError, match="estimator"):
        ModelDowser(estimator="exact")
    with pytest.raises(ValueError, match="group_size"):
        ModelDowser(group_size=0)


@pytest.mark.parametrize("cls", [Magnitude, ModelDowser, Random, WandaLike, HighestImportance])
@pytest.mark.parametrize("scope", ["layer", "model"])
def test_a_shared_budget_is_the_lowest_of_all_together(cls, scope):
    matrices = {name: Layer(name, *_measured((rows, 10), rows)) for name, rows in (("a", 4), ("b", 12), ("c", 7))}
    blocks = {"a": "layers.0", "b": "layers.1", "c": "layers.1"}
    method = cls(update_ratio=0.1, scope=scope)
    masks = dict(build_masks(method, blocks, matrices.__getitem__))
    for group in (["a"], ["b", "c"]) if scope == "layer" else (["a", "b", "c"],):
        scores = torch.cat([method.score(matrices[name]).flatten() for name in group])
        chosen = torch.cat([masks[name].flatten() for name in group])
        assert int(chosen.sum()) == round(0.1 * scores.numel())
        assert float(scores[chosen].max()) <= float(scores[~chosen].min())
    if scope == "model":
        assert sum(int(mask.sum()) for mask in masks.values()) == 23


def test_scope_matrix_gives_every_matrix_its_share():
    matrices = {name: Layer(name, *_measured((rows, 10), rows)) for name, rows in (("a", 4), ("b", 12))}
    masks = dict(build_masks(ModelDowser(0.25), dict.fromkeys(matrices, "x"), matrices.__getitem__))
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"a": 10, "b": 30}
    with pytest.raises(ValueError, match="scope must be one of matrix, layer, model, got 'all'"):
        ModelDowser(scope="all")


def _measured(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(shape, generator=generator),
        torch.rand(6, shape[1], generator=generator),
        torch.rand(6, shape[0], generator=generator),
    )


class Keeping(methods.Scored):
    """What it keeps beside its hyper-parameters."""

    def __init__(self, **kept):
        super().__init__(0.5, "matrix")
        vars(self).update(kept)

    def score(self, layer):
        return layer.weight.abs()


def test_settings_are_plain_attributes_and_what_is_none_is_refused_at_once():
    kept = Keeping(_table=torch.zeros(2), rows=[1, 2])
    assert kept.settings() == {"method": "Keeping", "update_ratio": 0.5, "scope": "matrix", "rows": [1, 2]}
    Dowser(kept)
    with pytest.raises(ValueError, match="Keeping.table is a Tensor, expected a text, .* that begins with _"):
        Dowser(Keeping(table=torch.zeros(2)))
