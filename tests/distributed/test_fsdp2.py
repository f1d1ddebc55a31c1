"""FSDP2 on two ranks against one process: the same masks, frozen bits and files, trained values within rounding."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import load_file

from dowser_pl.callbacks import Curve
from dowser_pl.methods import L2SP, Dare, HighestImportance, Lora, Magnitude, ModelDowser, Random, WandaLike
from dowser_pl.models.loading import load_model
from dowser_pl.models.lora import LoraSettings
from dowser_pl.shards import is_spread, local
from dowser_pl.strategies import FSDP2Strategy
from tests.distributed.fits import UnevenData, difference, fit
from tests.distributed.harness import RankError, alone, outcomes, run
from tests.distributed.test_resume import fit_until, killed, rows_of_steps
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

LAST = "checkpoints/last.ckpt"
CASES = {
    "clipped by the norm": {"gradient_clip_val": 0.05, "optimizer": "sgd"},
    "clipped by value, twice accumulated": {
        "gradient_clip_val": 1e-3,
        "gradient_clip_algorithm": "value",
        "accumulate_grad_batches": 2,
        "optimizer": "sgd",
    },
    "adamw": {"optimizer": "adamw"},
    "bf16-true": {"precision": "bf16-true", "optimizer": "sgd", "gradient_clip_val": 0.05},
    "bf16-mixed": {"precision": "bf16-mixed", "optimizer": "sgd", "accumulate_grad_batches": 2},
    "gathered in bfloat16": {"precision": "bf16-true", "optimizer": "sgd", "strategy": {"reduce_dtype": "float32"}},
    "two of three layers, activations recomputed": {
        "module": {"last_n_layers": 2, "gradient_checkpointing": True},
        "optimizer": "sgd",
    },
    "also train": {"module": {"also_train": ["projector", "norms", "embeddings"]}, "optimizer": "sgd"},
    "also train in half precision": {
        "module": {"also_train": ["lm_head"]},
        "precision": "bf16-true",
        "gradient_clip_val": 0.05,
        "accumulate_grad_batches": 2,
        "optimizer": "sgd",
    },
    "model-wide budget": {"method": ModelDowser(0.1, estimator="paper", scope="model"), "optimizer": "sgd"},
    "a budget for each layer": {"method": HighestImportance(0.1, scope="layer"), "optimizer": "sgd"},
    "random": {"method": Random(0.3), "optimizer": "sgd"},
    "magnitude": {"method": Magnitude(0.2), "optimizer": "sgd"},
    "wanda": {"method": WandaLike(0.2), "optimizer": "sgd"},
    "answers of unequal length": {"optimizer": "sgd", "uneven": 12},
}


def bound_of(name):
    """Share of the longest way of a weight by which another order of additions may move one; as under DDP."""
    return 0.05 if "bf" in name or "half" in name else 1e-3 if "value" in name or name == "adamw" else 1e-5


def fit_sharded(folder, model, *, strategy=None, uneven=0, **options):
    """As `fit`; alone, in one process without a strategy."""
    data = UnevenData(uneven) if uneven else None
    return fit(folder, model, strategy=FSDP2Strategy(**(strategy or {})), data=data, **options)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


QUICK = {"clipped by the norm", "model-wide budget"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in CASES])
def test_two_ranks_end_where_one_process_does(model_folder, tmp_path, name):
    options = {"max_epochs": 1, "num_rows": 16, **CASES[name]}
    one = alone(fit_sharded, tmp_path / "one", model_folder, **options)
    first, second = run(fit_sharded, tmp_path / "two", model_folder, **options)
    for matrix, mask in one.masks.items():
        assert torch.equal(mask, first.masks[matrix]) and torch.equal(mask, second.masks[matrix]), matrix
    assert one.frozen_digest == first.frozen_digest == second.frozen_digest
    assert first.counts[0] == one.counts[0] and first.counts[0].changed == 0
    assert first.counts[1].entries == one.counts[1].entries and first.counts[1].changed > 0
    assert first.steps == one.steps > 0
    assert first.before == second.before == one.before
    assert difference(first, one) <= bound_of(name) * one.way


@pytest.mark.slow
def test_three_ranks_share_rows_unevenly(model_folder, tmp_path):
    """Matrices of 32, 48 and 16 rows."""
    options = {"max_epochs": 1, "num_rows": 12, "batch_size": 6, "optimizer": "sgd", "method": Random(0.01)}
    one = alone(fit_sharded, tmp_path / "one", model_folder, **options)
    first, *_ = run(fit_sharded, tmp_path / "three", model_folder, ranks=3, **options)
    for matrix, mask in one.masks.items():
        assert torch.equal(mask, first.masks[matrix]), matrix
    assert one.frozen_digest == first.frozen_digest
    assert difference(first, one) <= 1e-5 * one.way


def test_files_are_those_of_one_process(model_folder, tmp_path):
    options = {"max_epochs": 1, "num_rows": 16, "optimizer": "sgd", "export": True, "cache_dir": None}
    alone(fit_sharded, tmp_path / "one", model_folder, **options)
    run(fit_sharded, tmp_path / "two", model_folder, **options)
    one, two = (load_file(tmp_path / name / "patch.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert tensor.dtype == two[key].dtype and torch.allclose(tensor.float(), two[key].float(), atol=1e-6), key
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert torch.allclose(tensor, two[key], atol=1e-6), key
    configs = [json.loads((tmp_path / name / "model" / "config.json").read_text()) for name in ("one", "two")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("checkpoint", ["compact", pytest.param("full", marks=pytest.mark.slow)])
def test_one_process_then_two_ranks_then_one(model_folder, tmp_path, checkpoint):
    """Stopped in mid epoch under no strategy, FSDP2, DDP, then FSDP2 to the end, which is that of an unbroken run."""
    settings = {"num_rows": 16, "batch_size": 4, "max_epochs": 2, "optimizer": "adamw", "checkpoint": checkpoint}
    unbroken = alone(fit, tmp_path / "unbroken", model_folder, **settings)
    folder, resumed = tmp_path / "run", settings | {"ckpt_path": str(tmp_path / "run" / LAST)}
    alone(fit_until, folder, model_folder, 1, **settings)
    sharded = run(until, folder, model_folder, 2, **resumed)
    copied = run(fit_until, folder, model_folder, 3, **resumed)
    whole = run(fit_sharded, folder, model_folder, **resumed)
    rows = rows_of_steps(unbroken.seen)
    assert rows_of_steps(*sharded) == rows[1:2] and rows_of_steps(*copied) == rows[2:3]
    assert rows_of_steps(*(rank.seen for rank in whole)) == rows[3:]
    for name, mask in unbroken.masks.items():
        assert torch.equal(mask, whole[0].masks[name]), name
    assert whole[0].frozen_digest == unbroken.frozen_digest
    assert difference(whole[0], unbroken) <= 1e-3 * unbroken.way


def until(folder, model, step, **options):
    return fit_until(folder, model, step, strategy=FSDP2Strategy(), **options)


@pytest.mark.slow
def test_a_run_whose_rank_was_killed_goes_on_bit_for_bit(model_folder, tmp_path):
    settings = {"num_rows": 16, "optimizer": "adamw", "gradient_clip_val": 0.05, "strategy": "fsdp2", "patience": 1.0}
    whole = run(fit, tmp_path / "whole", model_folder, **settings, max_epochs=1)
    killed(tmp_path / "run", model_folder, 2, 2, **settings, max_epochs=1)
    last = str(tmp_path / "run" / LAST)
    resumed = run(fit, tmp_path / "run", model_folder, ckpt_path=last, **settings, max_epochs=1)
    assert difference(whole[0], resumed[0]) == 0 and whole[0].frozen_digest == resumed[0].frozen_digest


@pytest.mark.parametrize(
    "options, said",
    [
        ({"method": Dare(0.3)}, "got dowser.method Dare .* expected a method that decides before training"),
        ({"callbacks": (Curve([0.05]),)}, "curve and budget take updates back in whole matrices, expected neither"),
        ({"method": L2SP(0.1)}, "got dowser.method L2SP"),
        ({"method": Lora(), "module": {"lora": LoraSettings(r=2)}}, "got dowser.method Lora"),
        ({"update": "dense"}, "got update 'dense' .* --dowser.update compact"),
        ({"module": {"quantization": "8bit"}}, "model.quantization 8bit, expected none"),
        (
            {"method": ModelDowser(0.1, estimator="weight")},
            "weight_square is a float32 number per weight",
        ),
    ],
)
def test_what_cannot_be_done_sharded_is_refused(model_folder, tmp_path, options, said):
    """On one rank: nothing is sent."""
    with pytest.raises(RankError, match=said):
        run(fit, tmp_path, model_folder, strategy="fsdp2", **options)


def fit_plain(folder, model):
    fit(folder, model, strategy=ModelParallelStrategy())


def test_a_strategy_of_lightning_itself_is_refused_with_ours(model_folder, tmp_path):
    with pytest.raises(RankError, match="ModelParallelStrategy is not supported: .* -c strategy/fsdp2"):
        run(fit_plain, tmp_path, model_folder)


def validated(folder, model):
    """Scores of a checkpoint."""
    trainer = build_trainer(Path(folder), ModelDowser(0.5), devices=2, strategy="fsdp2")
    module = build_module(Path(model))
    data = Memorised()
    trainer.validate(module, data, ckpt_path=str(Path(folder) / LAST), verbose=False)
    return module.scores


def test_a_checkpoint_is_validated_by_two_ranks(model_folder, tmp_path):
    """Written by one process that learnt the answers."""
    options = {"max_epochs": 8, "data": Memorised(), "optimizer": "adamw", "method": ModelDowser(0.5)}
    one = alone(fit, tmp_path, model_folder, **options)
    assert one.scores["colour"] > one.before["colour"]
    assert run(validated, tmp_path, model_folder) == [one.scores, one.scores]


class Memorised(TinyData):
    """Asks what it teaches."""

    def __init__(self) -> None:
        super().__init__(num_rows=12, batch_size=4)


def differing(folder, model):
    """A batch without an image on the second rank alone."""

    class Blind(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_rank == 1:
                del batch["pixel_values"]

    fit(folder, model, strategy="fsdp2", callbacks=(Blind(),), module={"also_train": ["projector"]})


def test_a_trained_projector_needs_images_on_all_ranks_or_none(model_folder, tmp_path):
    for outcome in outcomes(differing, tmp_path, model_folder):
        assert "got images on 1 of 2 processes" in outcome.message


def scaled(folder, model):
    """A projector with a number of its own, as it is trained by one process."""

    def load(*arguments, **options):
        loaded = load_model(*arguments, **options)
        where = "meta" if options["empty"] else "cpu"
        loaded.model.multi_modal_projector.scale = torch.nn.Parameter(torch.ones((), device=where))
        return loaded

    with patch("dowser_pl.module.load_model", load):
        fit(folder, model, strategy="fsdp2", module={"also_train": ["projector"]})


def test_a_trained_number_that_no_one_would_average_is_refused(model_folder, tmp_path):
    with pytest.raises(RankError, match="got a parameter without dimensions .* model.also_train"):
        run(scaled, tmp_path, model_folder)


def diverging(folder, model):
    """A gradient that is not finite on the second rank alone."""

    class Spoil(Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_rank == 1:
                next(each for each in pl_module.protected.parameters() if each.numel()).grad[0] = float("inf")

    fit(folder, model, strategy="fsdp2", callbacks=(Spoil(),))


def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(model_folder, tmp_path):
    for outcome in outcomes(diverging, tmp_path, model_folder):
        assert "a gradient is not finite at step 0" in outcome.message


def share(folder, model):
    """Of all weights, what this rank holds between two steps."""
    trainer = build_trainer(Path(folder), devices=2, strategy=FSDP2Strategy(), max_steps=1, limit_val_batches=1)
    module, found = build_module(Path(model)), []

    def look(*_):
        for name, weight in module.named_parameters():
            assert is_spread(weight), name
            found.append((local(weight.detach()).untyped_storage().nbytes(), weight.numel() * weight.itemsize))

    module.on_train_batch_end = look
    trainer.fit(module, datamodule=TinyData())
    here, everywhere = zip(*found, strict=True)
    return sum(here) / sum(everywhere)


def test_a_rank_holds_half_of_all_weights_between_steps(model_folder, tmp_path):
    """Five positions of the vision tower are three and two."""
    assert max(run(share, tmp_path, model_folder)) <= 0.51
