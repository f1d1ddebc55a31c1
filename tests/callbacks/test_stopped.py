"""A run that a limit ended in the middle of an epoch goes on with the rows that were left, bit for bit."""

import pytest
import torch
from lightning.pytorch import Callback

from dowser_pl.callbacks import Dowser
from dowser_pl.methods import Magnitude
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


class Diary(Callback):
    """Epoch and rows of every batch, and where validation took place."""

    def __init__(self):
        self.batches, self.validated = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch_idx, *batch["ids"]))

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)


class StopAfter(Callback):
    """As the timer of `max_time`, after a number of batches of this run."""

    def __init__(self, batches):
        self.left = batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.left -= 1
        if self.left == 0:
            trainer.should_stop = True


def fit(model, folder, *, every=None, callbacks=(), ckpt_path=None, rows=14, **options):
    """Seven batches an epoch."""
    diary = Diary()
    trainer = build_trainer(folder, Magnitude(0.2), (diary, *callbacks), every=every, **{"max_epochs": 3, **options})
    module = build_module(model, scheduler="constant", warmup_ratio=0.0)
    torch.manual_seed(0 if ckpt_path is None else 1)
    trainer.fit(module, datamodule=TinyData(rows), ckpt_path=ckpt_path)
    entries = next(each for each in trainer.callbacks if isinstance(each, Dowser)).entries
    return diary, {name: entries.values(name).detach().clone() for name in entries.weights}, trainer


STOPS = {
    "max_steps": [{"max_steps": 4}],
    "max_steps with checkpoints of its own": [{"max_steps": 4, "every": 3}],
    "max_steps in the second epoch": [{"max_steps": 10}],
    "max_steps at an epoch's end": [{"max_steps": 7}],
    "max_steps before an epoch's end": [{"max_steps": 6}],
    "max_steps again and again": [{"max_steps": steps} for steps in (1, 5, 6, 7, 8, 12)],
    "max_time": [{"stop": 5}],
    "max_time in the second epoch": [{"stop": 9}],
    "max_time at an epoch's end": [{"stop": 7}],
    "max_time twice": [{"stop": 3}, {"stop": 2}],
    "more and more epochs": [{"max_epochs": 1}, {"max_epochs": 2}],
    "max_steps, then max_time": [{"max_steps": 9}, {"stop": 2}],
    "max_time, then max_steps": [{"stop": 3}, {"max_steps": 9}],
}
OPTIONS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "validated": {"val_check_interval": 2},
    "validated by batches": {"val_check_interval": 3, "check_val_every_n_epoch": None},
}


def stopped_and_resumed(model, folder, stops, **options):
    """All parts of one run."""
    parts = []
    for stop in [*stops, {}]:
        limits = dict(stop)
        batches = limits.pop("stop", None)
        callbacks = (StopAfter(batches),) if batches else ()
        path = "last" if parts else None
        parts.append(fit(model, folder, callbacks=callbacks, ckpt_path=path, **options, **limits))
    return parts


QUICK = {("max_time", "accumulated"), ("max_time", "validated"), ("max_steps again and again", "validated by batches")}
QUICK |= {(stop, "plain") for stop in STOPS if "epoch" not in stop}
ALL = [(stop, option) for stop in STOPS for option in OPTIONS]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "option"), [pytest.param(*each, marks=[pytest.mark.slow] * (each not in QUICK)) for each in ALL]
)
def test_it_goes_on_with_the_rows_that_were_left(model_folder, tmp_path, stop, option):
    options = OPTIONS[option]
    whole, values, _ = fit(model_folder, tmp_path / "whole", **options)
    parts = stopped_and_resumed(model_folder, tmp_path / "cut", STOPS[stop], **options)
    assert len(parts) > 1
    assert [batch for diary, _, _ in parts for batch in diary.batches] == whole.batches
    for name, value in values.items():
        assert torch.equal(parts[-1][1][name], value), name
    assert set(whole.validated) <= {step for diary, _, _ in parts for step in diary.validated}
