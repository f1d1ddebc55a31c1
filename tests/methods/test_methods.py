"""One contract for every method, one golden 2 x 3 matrix each."""

import inspect

import pytest
import torch

from dowser_pl import methods
from dowser_pl.methods import Full, Layer, Magnitude, Method, ModelDowser, Random

ALL = [cls for _, cls in inspect.getmembers(methods, inspect.isclass) if issubclass(cls, Method) and cls is not Method]
WEIGHT = torch.tensor([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]])
GOLDEN = {
    # |W|: .25 and .5 are smallest
    Magnitude: [[False, False, True], [True, False, False]],
    # |W| * outer([4, 1], [1, 1, 9]): [[4, 8, 18], [.25, 3, 9]]
    ModelDowser: [[False, False, False], [True, True, False]],
    Random: [[False, True, False], [False, False, True]],
    Full: [[True] * 3, [True] * 3],
}


def layer(shape=(2, 3), weight=None):
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(shape, generator=generator) if weight is None else weight
    return Layer(
        "decoder.layers.0.q_proj",
        weight,
        activation=torch.rand(6, shape[1], generator=generator),
        abs_gradient=torch.rand(6, shape[0], generator=generator),
        square_gradient=torch.rand(6, shape[0], generator=generator),
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
    )
    method = build(cls, 1 / 3)
    assert method.mask(golden).tolist() == GOLDEN[cls]
    assert type(method).__name__ == method.settings()["method"]
    assert method.reference.title


@pytest.mark.parametrize("estimator", ["paper", "authors"])
def test_model_dowser_scores_by_hand(estimator):
    two = Layer(
        "m",
        WEIGHT,
        activation=torch.tensor([[1.0, 0.0, 2.0], [3.0, 2.0, 0.0]]),
        abs_gradient=torch.tensor([[1.0, 2.0], [3.0, 0.0]]),
        square_gradient=torch.tensor([[4.0, 9.0], [16.0, 0.0]]),
    )
    scores = ModelDowser(estimator=estimator, group_size=2).score(two)
    if estimator == "paper":  # roots, products, then the mean: outer([2,3],[1,0,2]) and outer([4,0],[3,2,0])
        mean = torch.tensor([[7.0, 4.0, 2.0], [1.5, 0.0, 3.0]])
    else:  # means, then the product: outer([2,1],[2,1,1])
        mean = torch.tensor([[4.0, 2.0, 2.0], [2.0, 1.0, 1.0]])
    assert torch.equal(scores, WEIGHT.abs() * mean)


@pytest.mark.parametrize("ratio", [0.0, 1e-6, 0.1, 1.0])
@pytest.mark.parametrize("cls", ALL)
def test_contract(cls, ratio):
    method = build(cls, ratio)
    for weight in (None, torch.zeros(12, 10), (torch.arange(120.0).view(12, 10) % 3)):  # ties too
        matrix = layer((12, 10), weight)
        before = matrix.weight.clone()
        mask = method.mask(matrix)
        assert mask.shape == (12, 10) and mask.dtype == torch.bool
        assert int(mask.sum()) == round(method.update_ratio * 120)
        assert torch.equal(mask, method.mask(matrix)), "same input, same mask"
        assert torch.equal(matrix.weight, before), "the weight is read, never written"


@pytest.mark.parametrize("cls", [cls for cls in ALL if cls is not Full])
@pytest.mark.parametrize("ratio", [-0.5, 1.5, float("nan")])
def test_a_ratio_outside_0_and_1_is_refused_when_the_method_is_made(cls, ratio):
    with pytest.raises(ValueError, match=r"update_ratio .* \[0, 1\]"):
        cls(update_ratio=ratio)


@pytest.mark.parametrize("cls", [cls for cls in ALL if cls.needs])
def test_a_weight_without_a_score_is_an_error(cls):
    with pytest.raises(ValueError, match="was not measured"):
        cls().mask(Layer("decoder.layers.0.q_proj", WEIGHT))


def test_merge_needs_tuned_weights_and_keeps_frozen_bits():
    method = Magnitude(1 / 3)
    with pytest.raises(ValueError, match="no tuned"):
        method.merge(Layer("m", WEIGHT), method.mask(Layer("m", WEIGHT)))
    merged = method.merge(Layer("m", WEIGHT, tuned=WEIGHT + 1), method.mask(Layer("m", WEIGHT)))
    assert merged.tolist() == [[1.0, -2.0, 1.5], [1.25, 3.0, -1.0]]


def test_random_masks_belong_to_seed_and_name():
    a, b = layer((30, 30)), Layer("another", layer((30, 30)).weight)
    assert not torch.equal(Random(0.5).mask(a), Random(0.5).mask(b))
    assert not torch.equal(Random(0.5, seed=1).mask(a), Random(0.5).mask(a))


def test_options_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match="estimator"):
        ModelDowser(estimator="exact")
    with pytest.raises(ValueError, match="group_size"):
        ModelDowser(group_size=0)
