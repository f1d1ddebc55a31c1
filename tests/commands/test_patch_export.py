"""A patch out of a checkpoint is that which the run writes when it ends."""

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from dowser_pl import __version__
from dowser_pl.methods import Magnitude
from dowser_pl.patches import Patch
from tests.commands.test_patch import error, run
from tests.patches.samples import raw
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def fit(model_folder, folder, module_options=None, **options):
    """Six steps; the folder then holds report, patch and checkpoint."""
    options = {"limit_val_batches": 1, "max_epochs": 1, **options}
    trainer = build_trainer(folder, Magnitude(0.1), **options)
    trainer.fit(build_module(model_folder, **(module_options or {})), datamodule=TinyData())
    return folder


@pytest.fixture(scope="module")
def finished(model_folder, tmp_path_factory):
    """A finished run; tests must not change it."""
    return fit(model_folder, tmp_path_factory.mktemp("runs") / "finished")


def assert_same_patch(one: Path, other: Path) -> None:
    with Patch.open(one) as first, Patch.open(other) as second:
        assert first.names == second.names
        for field in ("base", "method", "tensors"):
            assert first.head[field] == second.head[field]
        for name in first.names:
            mine, its = first.change(name), second.change(name)
            assert (mine.mask is None) == (its.mask is None) and mine.values.dtype == its.values.dtype
            assert mine.mask is None or torch.equal(mine.mask, its.mask)
            assert mine.values.shape == its.values.shape and (raw(mine.values) == raw(its.values)).all()


KINDS = {
    "compact": {},
    "full": {"checkpoint": "full"},
    "bf16": {"precision": "bf16-true"},
    "bf16, full": {"precision": "bf16-true", "checkpoint": "full"},
    "also train": {"module_options": {"also_train": ["projector", "norms"]}},
    "also train, full": {"module_options": {"also_train": ["projector", "norms"]}, "checkpoint": "full"},
    "dense": {"update": "dense"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_patch_of_the_last_checkpoint_is_that_of_the_run(model_folder, tmp_path, capsys, kind):
    folder = fit(model_folder, tmp_path / "run", **KINDS[kind])
    out = run(capsys, "export", folder, "--out", tmp_path / "p.safetensors")
    assert "From " in out and "last.ckpt, after 6 steps." in out
    assert_same_patch(tmp_path / "p.safetensors", folder / "patch.safetensors")


@pytest.mark.slow
def test_a_checkpoint_is_named_as_well_as_its_run(finished, tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    last = shutil.copy(finished / "checkpoints" / "last.ckpt", tmp_path / "run" / "checkpoints" / "last.ckpt")
    run(capsys, "export", tmp_path / "run", "--out", tmp_path / "a.safetensors")
    run(capsys, "export", last, "--out", tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with Patch.open(tmp_path / "a.safetensors") as patch:
        assert patch.head["config"] is patch.head["scores"] is None
        assert patch.head["created_by"] == f"dowser_pl {__version__} patch export"
        assert patch.head["versions"]["torch"] == version("torch")


class KillAfter(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyError("killed")


def test_a_run_that_was_killed_has_a_patch_of_what_it_had_reached(model_folder, finished, tmp_path, capsys):
    with pytest.raises(KeyError, match="killed"):
        fit(model_folder, tmp_path / "cut", callbacks=[KillAfter(4)])
    assert not (tmp_path / "cut" / "patch.safetensors").exists()
    out = run(capsys, "export", tmp_path / "cut", "--out", tmp_path / "p.safetensors")
    assert "after 4 steps" in out
    with Patch.open(tmp_path / "p.safetensors") as cut, Patch.open(finished / "patch.safetensors") as whole:
        assert cut.names == whole.names
        assert all(torch.equal(cut.change(name).mask, whole.change(name).mask) for name in cut.names)
        assert not all(torch.equal(cut.change(name).values, whole.change(name).values) for name in cut.names)


def head_of(capsys, folder: Path, checkpoint: str, out: Path) -> dict:
    run(capsys, "export", folder / "checkpoints" / checkpoint, "--out", out)
    with Patch.open(out) as patch:
        return patch.head


def test_scores_and_configuration_are_those_of_the_checkpoint(model_folder, finished, tmp_path, capsys):
    folder, out = tmp_path / "run", tmp_path / "p.safetensors"
    shutil.copytree(finished, folder)
    (folder / "config.yaml").write_text("seed_everything: 0\n")
    (folder / "checkpoints" / "previous.ckpt").write_bytes((folder / "checkpoints" / "last.ckpt").read_bytes())
    report = json.loads((folder / "report.json").read_text())
    head = head_of(capsys, folder, "last.ckpt", out)
    assert head["config"] == "seed_everything: 0\n"
    assert head["scores"]["upstream"] == {m: report["upstream"][m] for m in ("before", "after")}
    previous = head_of(capsys, folder, "previous.ckpt", out)
    assert previous["config"] is previous["scores"] is None
    for change in ({"steps": 5}, {"frozen_digest": {"before": "0" * 64, "after": "0" * 64}}):
        (folder / "report.json").write_text(json.dumps(report | change))
        assert head_of(capsys, folder, "last.ckpt", out)["scores"] is None, change


def without(checkpoint: dict, *keys: str) -> dict:
    """A copy of a checkpoint in which an entry of our state is gone."""
    state = dict(checkpoint["callbacks"]["Dowser"])
    for key in keys:
        del state[key]
    return checkpoint | {"callbacks": {"Dowser": state}}


FOREIGN = {
    "weights alone": (lambda _: {"weight": torch.rand(2)}, "holds no masks, expected .* use `patch diff`"),
    "a list": (lambda _: [1, 2], "holds no masks"),
    "no callbacks": (lambda checkpoint: checkpoint | {"callbacks": None}, "holds no masks"),
    "another callback": (lambda checkpoint: checkpoint | {"callbacks": {"Other": {"best": 1}}}, "holds no masks"),
    "no base": (lambda checkpoint: without(checkpoint, "base"), "holds no masks"),
    "no method": (lambda checkpoint: without(checkpoint, "method"), "another version of dowser_pl .KeyError: 'method'"),
    "an object": (lambda _: KillAfter(1), "not a readable checkpoint .UnpicklingError., expected a .ckpt file"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_checkpoint_is_told(finished, tmp_path, capsys, kind):
    make, message = FOREIGN[kind]
    torch.save(make(torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)), tmp_path / "x.ckpt")
    failed = error(capsys, "export", tmp_path / "x.ckpt", "--out", tmp_path / "p")
    assert re.search(f"x.ckpt .*{message}", failed), failed
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04.", b"PK\x03\x04" + b"0" * 100, "half"])
def test_a_file_that_is_no_checkpoint_is_told(finished, tmp_path, capsys, content):
    if content == "half":
        whole = (finished / "checkpoints" / "last.ckpt").read_bytes()
        content = whole[: len(whole) // 2]
    (tmp_path / "x.ckpt").write_bytes(content)
    failed = error(capsys, "export", tmp_path / "x.ckpt", "--out", tmp_path / "p")
    assert "x.ckpt is not a readable checkpoint" in failed
    assert not (tmp_path / "p").exists()


def test_a_wrong_path_is_told_with_the_nearest(finished, tmp_path, capsys):
    failed = error(capsys, "export", finished.parent / "finishd", "--out", tmp_path / "p")
    assert f"there is no checkpoint {finished.parent / 'finishd'}, did you mean {finished}?" in failed
    failed = error(capsys, "export", tmp_path, "--out", tmp_path / "p")
    assert f"there is no checkpoint {tmp_path / 'checkpoints' / 'last.ckpt'}; give the folder of a run" in failed


@pytest.mark.parametrize("source", ["run", "patch.safetensors"])
def test_a_sparse_update_makes_the_tuned_model_of_its_base(model_folder, finished, tmp_path, capsys, source):
    given = finished if source == "run" else finished / source
    out = run(capsys, "export", given, "--format", "sparse-update", "--out", tmp_path / "u.safetensors")
    run(capsys, "apply", model_folder, finished / "patch.safetensors", "--out", tmp_path / "tuned")
    base, tuned = (load_file(folder / "model.safetensors") for folder in (model_folder, tmp_path / "tuned"))
    update = load_file(tmp_path / "u.safetensors")
    names = [key.removesuffix(".indices") for key in update if key.endswith(".indices")]
    assert names and len(update) == 2 * len(names)
    assert f"Sparse update of {sum(len(update[f'{name}.values']) for name in names):,} entries" in out
    for name in names:
        indices, values = update[f"{name}.indices"], update[f"{name}.values"]
        assert indices.dtype == torch.int32 and values.dtype == base[name].dtype and indices.shape == values.shape
        assert bool((indices.diff() > 0).all())
        base[name].view(-1).index_copy_(0, indices.long(), values)
    assert all(torch.equal(base[name], tensor) for name, tensor in tuned.items())


def test_a_patch_written_again_is_the_same_patch(finished, tmp_path, capsys):
    run(capsys, "export", finished / "patch.safetensors", "--out", tmp_path / "again.safetensors")
    assert_same_patch(tmp_path / "again.safetensors", finished / "patch.safetensors")
