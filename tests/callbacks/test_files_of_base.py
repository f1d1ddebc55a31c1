"""The files that a base was read from, changed while a run uses them: the cause is named, and not at the end only."""

import os
import shutil

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file, save_file

from dowser_pl.callbacks.dowser import callback as watching
from dowser_pl.methods import Magnitude
from dowser_pl.models.weight_files import WeightFiles
from tests.callbacks.test_compact import fit
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture
def model(tmp_path):
    return save_tiny_llava(tmp_path / "model")


def write_into(file):
    """Other numbers in the place of those of the file, whose size stays."""
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(size // 4)
        opened.write(b"\x11" * (size - size // 4))


def replace(file):
    weights = {name: tensor + 1 for name, tensor in load_file(file).items()}
    save_file(weights, file.with_name("new"), metadata={"format": "pt"})
    file.with_name("new").replace(file)


class After(Callback):
    """Does something to the file when so many steps were taken."""

    def __init__(self, act, file, steps):
        self.act, self.file, self.steps = act, file, steps
        self.last = 0

    def on_train_batch_end(self, trainer, *_):
        self.last = trainer.global_step
        if trainer.global_step == self.steps and self.act is not None:
            self.act(self.file)


@pytest.mark.parametrize("update", ["compact", "dense"])
def test_a_base_written_into_ends_the_run_soon(model, tmp_path, monkeypatch, update):
    monkeypatch.setattr(watching, "_SECONDS", 0.0)
    after = After(write_into, model / "model.safetensors", 2)
    message = r"model.safetensors was written into while this run used it.*memory changed.*put the base back"
    with pytest.raises(ValueError, match=message):
        fit(model, tmp_path / "run", callbacks=[after], update=update, max_epochs=1)
    assert after.last == 2  # of six
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_base_written_into_in_the_last_step_is_named_as_the_cause(model, tmp_path):
    after = After(write_into, model / "model.safetensors", 6)
    trainer = build_trainer(tmp_path / "run", Magnitude(0.1), callbacks=[after], max_epochs=1)
    trainer.callbacks = [each for each in trainer.callbacks if type(each).__name__ != "Checkpoints"]
    with pytest.raises(ValueError, match="was written into while this run used it"):
        trainer.fit(build_module(model), datamodule=TinyData())


def test_no_checkpoint_is_saved_of_a_base_written_into(model, tmp_path):
    """They are saved after each step here."""
    after = After(write_into, model / "model.safetensors", 3)
    with pytest.raises(ValueError, match="was written into"):
        fit(model, tmp_path / "run", callbacks=[after], max_epochs=1)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] in (2, 3)


def test_a_base_written_into_while_it_is_measured(model, tmp_path):
    class Early(Callback):
        def setup(self, trainer, pl_module, stage):
            load = pl_module.configure_model

            def configure_model():
                load()
                write_into(model / "model.safetensors")

            pl_module.configure_model = configure_model

    with pytest.raises(ValueError, match="was written into"):
        fit(model, tmp_path / "run", callbacks=[Early()], max_epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("act", [replace, lambda file: file.unlink()], ids=["replaced", "deleted"])
def test_a_base_replaced_is_told_once_and_the_run_goes_on(model, tmp_path, monkeypatch, act):
    monkeypatch.setattr(watching, "_SECONDS", 0.0)
    _, untouched, _ = fit(shutil.copytree(model, tmp_path / "same"), tmp_path / "a", max_epochs=1)
    with pytest.warns(UserWarning, match="model.safetensors is no longer the file that this run read") as told:
        _, module, _ = fit(model, tmp_path / "b", max_epochs=1, callbacks=[After(act, model / "model.safetensors", 2)])
    assert sum("no longer the file" in str(each.message) for each in told) == 1
    first, second = untouched.state_dict(), module.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_touched_file_is_no_harm(model, tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "_SECONDS", 0.0)
    with pytest.warns(UserWarning, match="no longer the file"):
        fit(model, tmp_path / "a", max_epochs=1, callbacks=[After(os.utime, model / "model.safetensors", 2)])


def test_what_changed(tmp_path):
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "b").write_bytes(b"12")
    files = WeightFiles.of([tmp_path / "a", tmp_path / "b"])
    assert files.changed() == {}
    (tmp_path / "a").write_bytes(b"123")
    assert files.changed() == {tmp_path / "a": True}
    (tmp_path / "c").write_bytes(b"12")
    (tmp_path / "c").replace(tmp_path / "b")
    assert files.changed() == {tmp_path / "a": True, tmp_path / "b": False}
    files.forget()
    (tmp_path / "a").unlink()
    assert files.changed() == {tmp_path / "a": False}
