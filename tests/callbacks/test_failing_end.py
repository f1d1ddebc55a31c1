"""Whatever fails after the last step, the step is kept: the same command with `--ckpt_path last` makes the rest."""

import errno
import json
import subprocess
import sys
from pkgutil import resolve_name

import pytest
import torch
from safetensors.torch import load_file

from dowser_pl.callbacks import Curve
from dowser_pl.methods import Dare, Magnitude, ModelTailor
from dowser_pl.patches.from_checkpoint import read_checkpoint_patch
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


REPORT = {"report.json", "report.md", "answers.jsonl"}
NEVER = 1_000_000  # steps between checkpoints
CURVE = {"callbacks": (Curve([0.1]),)}
FAILURES = {
    "export, disk full": ("dowser_pl.callbacks.export.Export.on_train_end", OSError, {}),
    "report": ("dowser_pl.callbacks.forgetting.write_report", ValueError, {}),
    "last evaluation": ("dowser_pl.callbacks.forgetting.Forgetting.on_validation_end", ValueError, {}),
    "patch": ("dowser_pl.callbacks.patch_file.save_patch", RuntimeError, {}),
    "merge": ("dowser_pl.callbacks.dowser.merging.Merging._write", ValueError, {"method": Dare(0.3)}),
    "calibration": ("dowser_pl.callbacks.dowser.merging.InputGrams.mean", RuntimeError, {"method": ModelTailor(0.2)}),
    "curve": ("dowser_pl.callbacks.curve.Curve.finish", ValueError, CURVE),
    "check of frozen entries": ("dowser_pl.callbacks.dowser.callback.check_frozen", RuntimeError, {}),
}
ENDS = {
    "epochs": {"max_epochs": 1},
    "steps": {"max_epochs": -1, "max_steps": 4},
    "short last window": {"max_epochs": 1, "accumulate_grad_batches": 4},
}


def fit(model, folder, *, method=None, ckpt_path=None, every=NEVER, **options):
    """Six batches an epoch, no checkpoint but that of the end."""
    trainer = build_trainer(folder, method or Magnitude(0.3), every=every, export=True, **options)
    torch.manual_seed(0 if ckpt_path is None else 1)
    trainer.fit(build_module(model), datamodule=TinyData(), ckpt_path=ckpt_path)


def results(folder):
    report = json.loads((folder / "report.json").read_text())
    for key in ("seconds", "peak_memory_bytes", "run"):
        report.pop(key)
    patch = folder / "patch.safetensors"
    return report, load_file(folder / "model" / "model.safetensors"), load_file(patch) if patch.exists() else {}


QUICK = {("export, disk full", "steps"), ("last evaluation", "epochs"), ("patch", "steps")}
ALL = [(name, end) for name in FAILURES for end in ENDS]


@pytest.mark.parametrize(
    ("name", "end"), [pytest.param(*each, marks=[pytest.mark.slow] * (each not in QUICK)) for each in ALL]
)
def test_no_step_is_lost(model_folder, tmp_path, monkeypatch, name, end):
    place, kind, options = FAILURES[name]
    fit(model_folder, tmp_path / "whole", **ENDS[end], **options)
    with monkeypatch.context() as broken:
        started, right = [], resolve_name(place)
        broken.setattr("dowser_pl.callbacks.resume.RandomState.on_train_start", lambda *_: started.append(True))
        broken.setattr(place, lambda *args, **options: _fail(kind) if started else right(*args, **options))
        with pytest.raises(kind) as caught:
            fit(model_folder, tmp_path / "cut", **ENDS[end], **options)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    steps = torch.load(last, weights_only=True)["global_step"]
    assert f"All {steps} steps are kept in {last}: once this is mended, the same command with --ckpt_path last" in str(
        caught.value
    )
    assert str(caught.value).endswith("trains no more and makes what is missing")
    assert read_checkpoint_patch(tmp_path / "cut").steps == steps
    fit(model_folder, tmp_path / "cut", ckpt_path="last", **ENDS[end], **options)
    (report, weights, patch), (expected, good, small) = results(tmp_path / "cut"), results(tmp_path / "whole")
    assert report == expected and report["steps"] == steps
    for one, other in ((weights, good), (patch, small)):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in other)


def _fail(kind):
    raise OSError(errno.ENOSPC, "The disk is full", "model") if kind is OSError else kind("it went wrong")


def test_what_fails_before_the_last_step_says_nothing_of_the_kind(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dowser_pl.module.multimodal.check_loss", lambda *_: _fail(ValueError))
    with pytest.raises(ValueError, match="^it went wrong$"):
        fit(model_folder, tmp_path, max_epochs=1)


def test_a_fast_run_of_one_batch_keeps_nothing_and_says_nothing(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dowser_pl.callbacks.export.Export.on_train_end", lambda *_: _fail(ValueError))
    with pytest.raises(ValueError, match="^it went wrong$"):
        fit(model_folder, tmp_path, fast_dev_run=True)


def test_what_a_killed_export_left_is_deleted_by_the_next_run(model_folder, tmp_path):
    """A model's size of it, by this version and by an earlier one."""
    ended = subprocess.run(
        [sys.executable, "-c", "import os; from dowser_pl.files.atomic import _writer; print(_writer())"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for writer in (ended.stdout.strip(), "0123abcd"):
        (tmp_path / f".model.{writer}.tmp").mkdir(parents=True)
        (tmp_path / f".model.{writer}.tmp" / "model.safetensors").write_bytes(b"half")
    fit(model_folder, tmp_path, max_epochs=1)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "model", "patch.safetensors"} | REPORT
