"""Runs that train entries as parameters: equal to dense masking, small checkpoints, no base but their own."""

import json

import bitsandbytes
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from dowser_pl.callbacks import Dowser
from dowser_pl.methods import Full, Magnitude
from dowser_pl.module import MultimodalModule
from dowser_pl.patches import Patch
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


def fit(model_folder, folder, optimizer=adamw, method=None, ckpt_path=None, module_options=None, **options):
    trainer = build_trainer(folder, method or Magnitude(0.1), limit_val_batches=1, **{"max_epochs": 1, **options})
    module = MultimodalModule(str(model_folder), optimizer=optimizer, **(module_options or {}))
    trainer.fit(module, datamodule=TinyData(), ckpt_path=ckpt_path)
    return trainer, module, next(c for c in trainer.callbacks if isinstance(c, Dowser))


def weights_of(module):
    return {name: value.clone() for name, value in module.network.state_dict().items()}


def assert_equal(one, other, **tolerance):
    assert set(one) == set(other)
    for name, value in one.items():
        if tolerance:
            torch.testing.assert_close(value, other[name], **tolerance)
        else:
            assert torch.equal(value, other[name]), name


EXACT = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "clip by value": {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "checkpointing": {"module_options": {"gradient_checkpointing": True}},
    "also train": {"module_options": {"also_train": ["projector", "norms"]}},
    "all of it": {"method": Full()},
}


LONGER = {"clip by value", "checkpointing", "all of it"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONGER)) for name in EXACT])
def test_equal_to_the_dense_form_bit_by_bit(model_folder, tmp_path, name):
    _, compact, _ = fit(model_folder, tmp_path / "compact", **EXACT[name])
    _, dense, dowser = fit(model_folder, tmp_path / "dense", update="dense", **EXACT[name])
    assert dowser.counts[1].changed > 0
    assert_equal(weights_of(compact), weights_of(dense))


def test_clipping_by_norm_differs_by_the_rounding_of_a_sum(model_folder, tmp_path):
    options = {"gradient_clip_val": 0.01}
    _, compact, _ = fit(model_folder, tmp_path / "compact", **options)
    _, dense, _ = fit(model_folder, tmp_path / "dense", update="dense", **options)
    assert_equal(weights_of(compact), weights_of(dense), rtol=1e-4, atol=1e-5)


OPTIMIZERS = {
    "fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-1, momentum=0.9),
    "AdamW8bit": lambda p: bitsandbytes.optim.AdamW8bit(p, lr=1e-2, min_8bit_size=16),
    "PagedAdamW8bit": lambda p: bitsandbytes.optim.PagedAdamW8bit(p, lr=1e-2, min_8bit_size=16),
    "Lion8bit": lambda p: bitsandbytes.optim.Lion8bit(p, lr=1e-3, min_8bit_size=16),
}


class KillAfter(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyError("killed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [
        *((name, "compact") for name in OPTIMIZERS),
        ("fused", "full"),
        *(pytest.param(name, "full", marks=pytest.mark.slow) for name in OPTIMIZERS if name != "fused"),
    ],
)
def test_every_optimizer_trains_and_resumes_bit_by_bit(model_folder, tmp_path, name, checkpoint):
    options = {"optimizer": OPTIMIZERS[name], "checkpoint": checkpoint, "max_epochs": 2}
    _, whole, dowser = fit(model_folder, tmp_path / "whole", **options)
    assert dowser.counts[0].changed == 0 and dowser.counts[1].changed > 0.9 * dowser.counts[1].entries
    with pytest.raises(KeyError, match="killed"):
        fit(model_folder, tmp_path / "cut", callbacks=[KillAfter(4)], **options)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    _, resumed, again = fit(model_folder, tmp_path / "cut", ckpt_path=last, **options)
    assert_equal(weights_of(resumed), weights_of(whole))
    assert again.counts == dowser.counts
    assert again.frozen_digest == dowser.frozen_digest


@pytest.mark.slow
@pytest.mark.parametrize("update", ["compact", "dense"])
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_every_precision_resumes_bit_by_bit(model_folder, tmp_path, precision, update):
    options = {"precision": precision, "update": update, "max_epochs": 2}
    _, whole, dowser = fit(model_folder, tmp_path / "whole", **options)
    assert dowser.counts[1].changed > 0
    with pytest.raises(KeyError, match="killed"):
        fit(model_folder, tmp_path / "cut", callbacks=[KillAfter(4)], **options)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    _, resumed, _ = fit(model_folder, tmp_path / "cut", ckpt_path=last, **options)
    assert_equal(weights_of(resumed), weights_of(whole))


def test_a_compact_checkpoint_holds_only_what_was_trained(model_folder, tmp_path):
    extra = {"module_options": {"also_train": ["projector"]}}
    _, module, dowser = fit(model_folder, tmp_path / "compact", **extra)
    fit(model_folder, tmp_path / "full", checkpoint="full", **extra)
    compact, full = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("compact", "full")
    )
    assert set(full["state_dict"]) == set(module.state_dict())
    assert set(compact["state_dict"]) == set(dowser.base.whole)
    state = compact["callbacks"]["Dowser"]
    trained = sum(module.state_dict()[name].numel() for name in compact["state_dict"])
    moments = [v for s in compact["optimizer_states"][0]["state"].values() for v in s.values() if v.dim()]
    assert sum(moment.numel() for moment in moments) == 2 * (dowser.entries.num_trainable + trained)
    assert {key for entry in state["entries"].values() for key in entry} == {"mask", "values"}


def test_a_compact_checkpoint_scores_like_the_run_that_wrote_it(model_folder, tmp_path):
    _, module, _ = fit(model_folder, tmp_path)
    for precision in ("32-true", "bf16-mixed"):
        trainer = build_trainer(tmp_path / "again", Magnitude(0.1), precision=precision)
        fresh = build_module(model_folder)
        trainer.validate(fresh, datamodule=TinyData(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt", verbose=False)
        assert_equal(weights_of(fresh), weights_of(module))


def test_half_precision_training_is_validated_in_full_precision(model_folder, tmp_path):
    """The base is compared as the run had it: rounded."""
    _, module, _ = fit(model_folder, tmp_path, precision="bf16-true")
    trainer, fresh = build_trainer(tmp_path / "again", Magnitude(0.1)), build_module(model_folder)
    trainer.validate(fresh, datamodule=TinyData(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt", verbose=False)
    assert fresh.network.dtype == torch.float32
    assert_equal(weights_of(fresh), {name: value.float() for name, value in weights_of(module).items()})


def test_another_base_is_refused(model_folder, tmp_path):
    fit(model_folder, tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    other = save_tiny_llava(tmp_path / "other")
    module = build_module(other)
    trainer = build_trainer(tmp_path / "again", Magnitude(0.1))
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit of the last tensor in the file
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not its base: model\..* differs. It was made from .*model"):
        trainer.fit(module, datamodule=TinyData(), ckpt_path=last)


def test_other_parts_trained_whole_are_refused(model_folder, tmp_path):
    fit(model_folder, tmp_path, module_options={"also_train": ["projector"]})
    last = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["state_dict"].popitem()
    torch.save(checkpoint, last)
    with pytest.raises(ValueError, match="only one of them has is 'model.model.multi_modal_projector"):
        build_trainer(tmp_path / "b", Magnitude(0.1)).fit(
            build_module(model_folder), datamodule=TinyData(), ckpt_path=last
        )


@pytest.mark.parametrize(("written", "resumed"), [("compact", "dense"), ("dense", "compact")])
def test_the_other_form_is_refused(model_folder, tmp_path, written, resumed):
    fit(model_folder, tmp_path, update=written)
    with pytest.raises(ValueError, match=f"trained with update {written}.*asks for {resumed}"):
        fit(model_folder, tmp_path, update=resumed, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")


def test_a_module_can_be_fitted_again_after_a_run_that_was_stopped_at_once(model_folder, tmp_path):
    class Stop(Callback):
        def on_train_batch_start(self, *_):
            raise KeyError("stopped")

    module = MultimodalModule(str(model_folder), optimizer=adamw)
    with pytest.raises(KeyError, match="stopped"):
        build_trainer(tmp_path / "a", Magnitude(0.1), callbacks=[Stop()]).fit(module, datamodule=TinyData())
    trainer = build_trainer(tmp_path / "b", Magnitude(0.1), max_epochs=1)
    trainer.fit(module, datamodule=TinyData())
    dowser = next(c for c in trainer.callbacks if isinstance(c, Dowser))
    assert dowser.counts[1].changed == dowser.counts[1].entries


def test_no_such_form_is_refused():
    with pytest.raises(ValueError, match="got update 'sparse'"):
        Dowser(update="sparse")


def test_the_report_proves_that_nothing_frozen_moved(model_folder, tmp_path):
    _, _, dowser = fit(model_folder, tmp_path)
    digests = json.loads((tmp_path / "report.json").read_text())["frozen_digest"]
    assert len(digests["before"]) == 64 and digests == dowser.frozen_digest
    assert digests["before"] == digests["after"]


PATCHED = {
    "plain": {},
    "bf16": {"precision": "bf16-true"},
    "also train": {"module_options": {"also_train": ["projector", "lm_head"]}},
    "dense": {"update": "dense"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PATCHED)
def test_the_patch_turns_the_base_into_the_exported_model(model_folder, tmp_path, name):
    """By hand: unpack the bits, put the values there."""
    _, _, dowser = fit(model_folder, tmp_path, export=True, **PATCHED[name])
    base = load_file(model_folder / "model.safetensors")
    tuned = load_file(tmp_path / "model" / "model.safetensors")
    changed = 0
    with Patch.open(tmp_path / "patch.safetensors") as patch:
        assert patch.head["method"] == {"method": "Magnitude", "update_ratio": 0.1, "scope": "matrix"}
        assert patch.head["scores"]["upstream"].keys() == {"before", "after"}
        for key in patch.names:
            change = patch.change(key)
            expected = base[key].to(change.values.dtype)
            if change.mask is None:
                expected = change.values
            else:
                mask = np.unpackbits(change.mask.numpy(), count=expected.numel(), bitorder="little").astype(bool)
                changed += int(mask.sum())
                expected.view(-1)[torch.from_numpy(mask)] = change.values
            assert torch.equal(expected, tuned[key]), key
            base[key] = expected
    assert changed == dowser.entries.num_trainable
    assert all(torch.equal(base[key].to(tuned[key].dtype), tuned[key]) for key in tuned)


def test_a_run_that_trains_everything_writes_no_patch(model_folder, tmp_path):
    fit(model_folder, tmp_path, method=Full())
    assert not (tmp_path / "patch.safetensors").exists()


def test_a_patch_is_bits_and_values(model_folder, tmp_path):
    _, _, dowser = fit(model_folder, tmp_path)
    entries = sum(weight.numel() for weight in dowser.entries.weights.values())
    tensors = load_file(tmp_path / "patch.safetensors")
    assert sum(tensor.nbytes for tensor in tensors.values()) == entries // 8 + 4 * dowser.entries.num_trainable
