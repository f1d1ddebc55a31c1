"""FSDP1 and FSDP2 on two ranks against one process: the same masks, frozen bits and files, values within rounding."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from dowser_pl.callbacks import Dowser
from dowser_pl.distributed.tensors import full_tensor, is_sharded, to_local, whole_shapes
from dowser_pl.methods import Full, HalfFineTuning, HighestImportance, Magnitude, ModelDowser, Random, WandaLike
from tests.distributed.fits import difference
from tests.distributed.harness import alone, run
from tests.distributed.sharded import SHARDED, both, fit_sharded, one_fast
from tests.distributed.test_resume import LAST
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import SMALL_PROBE, TinyData, build_module, build_trainer


class Blind(Callback):
    """No rank sees images in every other step; the last layer of the vision tower is used in none."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % 2:
            del batch["pixel_values"]


CASES = {
    "clipped by the norm": {"gradient_clip_val": 0.05, "optimizer": "sgd"},
    "clipped by value, twice accumulated, magnitude": {
        "method": Magnitude(0.2),
        "gradient_clip_val": 1e-3,
        "gradient_clip_algorithm": "value",
        "accumulate_grad_batches": 2,
        "optimizer": "sgd",
    },
    "adamw": {"optimizer": "adamw"},
    "bf16-true": {"precision": "bf16-true", "optimizer": "sgd", "gradient_clip_val": 0.05},
    "bf16-mixed": {"precision": "bf16-mixed", "optimizer": "sgd", "accumulate_grad_batches": 2},
    "averaged in float32 beside bf16, random": {
        "method": Random(0.3),
        "precision": "bf16-true",
        "optimizer": "sgd",
        "strategy": {"reduce_dtype": "float32"},
    },
    "two of three layers, a budget for each, activations recomputed": {
        "method": HighestImportance(0.1, scope="layer"),
        "module": {"last_n_layers": 2, "gradient_checkpointing": True},
        "optimizer": "sgd",
    },
    "whole matrices": {"method": HalfFineTuning(), "optimizer": "sgd"},
    "importance on rows, pictures and words": {
        "probe": replace(SMALL_PROBE, inputs="rows", num_prompts=9, batch_size=4),
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
    "also train what takes no part in some steps": {
        "module": {"also_train": ["projector", "vision", "norms"]},
        "callbacks": (Blind(),),
        "optimizer": "sgd",
    },
    "all entries": {"method": Full(), "optimizer": "sgd"},
    "model-wide budget": {"method": ModelDowser(0.1, estimator="paper", scope="model"), "optimizer": "sgd"},
    "answers of unequal length, wanda": {"method": WandaLike(0.2), "optimizer": "sgd", "uneven": 12},
}


def bound_of(name):
    """Share of the longest way of a weight by which another order of additions may move one; as under DDP."""
    return 0.05 if "bf" in name or "half" in name else 1e-3 if "value" in name or name == "adamw" else 1e-5


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def single(model_folder, tmp_path_factory):
    """What one process ends with, once for both strategies."""
    ended = {}

    def of(name, **options):
        if name not in ended:
            ended[name] = alone(fit_sharded, tmp_path_factory.mktemp("one"), model_folder, "fsdp2", **options)
        return ended[name]

    return of


FAST = {("clipped by the norm", "fsdp1"), ("clipped by the norm", "fsdp2"), ("model-wide budget", "fsdp2")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, kind",
    [
        pytest.param(name, kind, marks=[pytest.mark.slow] * ((name, kind) not in FAST))
        for name in CASES
        for kind in SHARDED
    ],
)
def test_two_ranks_end_where_one_process_does(model_folder, tmp_path, single, name, kind):
    options = {"max_epochs": 1, "num_rows": 16, **CASES[name]}
    one = single(name, **options)
    first, second = run(fit_sharded, tmp_path, model_folder, kind, **options)
    for matrix, mask in one.masks.items():
        assert torch.equal(mask, first.masks[matrix]) and torch.equal(mask, second.masks[matrix]), matrix
    assert one.frozen_digest == first.frozen_digest == second.frozen_digest
    assert first.counts[0] == one.counts[0] and first.counts[0].changed == 0
    assert first.counts[1].entries == one.counts[1].entries and first.counts[1].changed > 0
    assert first.steps == one.steps > 0
    assert first.before == second.before == one.before
    assert difference(first, one) <= bound_of(name) * one.way


@pytest.mark.slow
@both
def test_three_ranks_share_matrices_unevenly(model_folder, tmp_path, single, kind):
    """Matrices of 32, 48 and 16 rows."""
    options = {"max_epochs": 1, "num_rows": 12, "batch_size": 6, "optimizer": "sgd", "method": Random(0.01)}
    one = single("three", **options)
    first, *_ = run(fit_sharded, tmp_path, model_folder, kind, ranks=3, **options)
    for matrix, mask in one.masks.items():
        assert torch.equal(mask, first.masks[matrix]), matrix
    assert one.frozen_digest == first.frozen_digest
    assert difference(first, one) <= 1e-5 * one.way


@pytest.fixture(scope="module")
def files(model_folder, tmp_path_factory):
    """Of one process."""
    folder = tmp_path_factory.mktemp("files")
    alone(fit_sharded, folder, model_folder, "fsdp2", **WRITTEN)
    return folder


WRITTEN = {"max_epochs": 1, "num_rows": 16, "optimizer": "sgd", "export": True, "cache_dir": None}


@pytest.mark.slow
@one_fast
def test_files_are_those_of_one_process(model_folder, tmp_path, files, kind):
    run(fit_sharded, tmp_path, model_folder, kind, **WRITTEN)
    one, two = (load_file(folder / "patch.safetensors") for folder in (files, tmp_path))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert tensor.dtype == two[key].dtype and torch.allclose(tensor.float(), two[key].float(), atol=1e-6), key
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (files, tmp_path))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert torch.allclose(tensor, two[key], atol=1e-6), key
    configs = [json.loads((folder / "model" / "config.json").read_text()) for folder in (files, tmp_path)]
    assert configs[0] == configs[1]


def on_one_device(folder, model, kind):
    """Digests and matrices at the end, and steps after a resume."""
    options = {"devices": 1, "strategy": kind, "gradient_clip_val": 0.1}
    trainer = build_trainer(Path(folder), **options, max_epochs=1)
    module = build_module(Path(model))
    trainer.fit(module, datamodule=TinyData())
    dowser = next(callback for callback in trainer.callbacks if isinstance(callback, Dowser))
    weights = {name: full_tensor(weight).clone() for name, weight in dowser.entries.weights.items()}
    trainer.validate(module, datamodule=TinyData(), verbose=False)
    resumed = build_trainer(Path(folder), **options, max_epochs=2)
    resumed.fit(build_module(Path(model)), datamodule=TinyData(), ckpt_path=str(Path(folder) / LAST))
    return dowser.frozen_digest, weights, resumed.global_step


@pytest.mark.slow
@both
def test_one_device_ends_as_without_a_strategy(model_folder, tmp_path, kind):
    one = alone(on_one_device, tmp_path / "one", model_folder, "auto")
    digests, weights, steps = alone(on_one_device, tmp_path / kind, model_folder, kind)
    assert digests == one[0] and steps == one[2] == 12
    assert all(torch.equal(weight, one[1][name]) for name, weight in weights.items())


def share(folder, model, kind):
    """Of all weights, what this rank holds between two steps."""
    trainer = build_trainer(Path(folder), devices=2, strategy=SHARDED[kind](), max_steps=1, limit_val_batches=1)
    module, memory, everywhere = build_module(Path(model)), {}, []

    def look(*_):
        for name, weight in module.named_parameters():
            assert is_sharded(weight), name
            here = to_local(weight).untyped_storage()
            memory[here.data_ptr()] = here.nbytes()
        with whole_shapes(module):
            everywhere.append(sum(weight.nbytes for weight in module.parameters()))

    module.on_train_batch_end = look
    trainer.fit(module, datamodule=TinyData())
    return sum(memory.values()) / everywhere[-1]


@pytest.mark.slow
@one_fast
def test_a_rank_holds_half_of_all_weights_between_steps(model_folder, tmp_path, kind):
    """Five positions of the vision tower are three and two."""
    assert max(run(share, tmp_path, model_folder, kind)) <= 0.51
