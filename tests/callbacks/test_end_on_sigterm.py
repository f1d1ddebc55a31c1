"""SIGTERM: at once outside of training steps, behind the step inside one, and what is kept is said."""

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dowser_pl.callbacks.end_on_sigterm import EndOnSigterm, end_now, ending_on_sigterm
from dowser_pl.cli.main import main
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def told():
    os.kill(os.getpid(), signal.SIGTERM)


class Told(Callback):
    """Gets the signal in a hook, and writes down the hooks that were begun."""

    def __init__(self, hook, number=1):
        self.begun, self.left = [], number
        for name in ("on_train_batch_start", "on_train_batch_end", "on_validation_batch_start"):
            setattr(self, name, lambda *_, name=name: self._begin(name, hook))

    def _begin(self, name, hook):
        self.begun.append(name)
        self.left -= name == hook
        if name == hook and not self.left:
            told()
            self.begun.append("went on")


def ended(tmp_path, model_folder, callback, **options):
    """The message of a run that was told to end, and its trainer."""
    trainer = build_trainer(tmp_path, callbacks=[EndOnSigterm(), callback], **options)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SIGTERMException) as end, ending_on_sigterm():
        trainer.fit(build_module(model_folder), datamodule=TinyData())
    assert signal.getsignal(signal.SIGTERM) == before
    return str(end.value), trainer


def test_an_evaluation_ends_in_the_middle_of_a_batch(tmp_path, model_folder):
    callback = Told("on_validation_batch_start", number=2)
    message, _ = ended(tmp_path, model_folder, callback)
    assert callback.begun == ["on_validation_batch_start"] * 2 and message == "ended by SIGTERM"


def test_an_importance_pass_ends_where_it_is(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr("dowser_pl.callbacks.dowser.importance.write_prompts", lambda *_, **__: told())
    callback = Told("")
    message, _ = ended(tmp_path, model_folder, callback)
    assert not callback.begun and message == "ended by SIGTERM"


def test_a_step_is_finished_and_what_is_kept_is_said(tmp_path, model_folder):
    callback = Told("on_train_batch_start", number=3)
    message, trainer = ended(tmp_path, model_folder, callback, every=2)
    assert callback.begun[-3:] == ["on_train_batch_start", "went on", "on_train_batch_end"] and trainer.global_step == 3
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert message == f"ended by SIGTERM after 3 steps; the same command with --ckpt_path last goes on from {last}"
    assert last.is_file()


def test_no_evaluation_follows_a_step_in_which_the_signal_came(tmp_path, model_folder):
    callback = Told("on_train_batch_start", number=6)  # the last one of the first epoch
    message, trainer = ended(tmp_path, model_folder, callback, every=100)
    assert callback.begun[-1] == "on_train_batch_end" and trainer.global_step == 6
    assert "after 6 steps" in message and "before the first checkpoint" in message


def test_the_command_line_says_so_and_its_status_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dowser_pl.cli.main.DowserCLI", lambda *_, **__: told())
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "quickstart"])
    assert stop.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "error: ended by SIGTERM\n"


def test_a_second_signal_means_it():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SIGTERMException):
            end_now(signal.SIGTERM, None)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_checkpoint_that_is_being_written_is_finished(tmp_path, model_folder, monkeypatch):
    saved = torch.save

    def slowly(*arguments, **options):
        saved(*arguments, **options)
        told()

    monkeypatch.setattr(torch, "save", slowly)
    message, trainer = ended(tmp_path, model_folder, Told(""), every=2)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert message.startswith("ended by SIGTERM after 2 steps; the same command with --ckpt_path last")
    assert trainer.global_step == 2 and torch.load(last, weights_only=False)["global_step"] == 2


def test_a_run_that_was_ended_in_a_step_ends_no_later_one(tmp_path, model_folder):
    ended(tmp_path / "first", model_folder, Told("on_train_batch_start", number=3), every=2)
    trainer = build_trainer(tmp_path / "second", every=2)
    trainer.fit(build_module(model_folder), datamodule=TinyData())
    assert trainer.global_step == 12 and (tmp_path / "second" / "report.json").exists()
