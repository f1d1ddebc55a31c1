"""What any logger of Lightning is told of a run, and how often."""

import pytest
from lightning.pytorch.loggers import Logger

from dowser_pl.reporting import read_report, scalars
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


class Recorder(Logger):
    """One that only knows the interface."""

    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.told = []

    def log_hyperparams(self, params):
        raise AssertionError("only the command line knows these")

    def log_metrics(self, metrics, step=None):
        self.told.append((step, dict(metrics)))


@pytest.mark.parametrize(
    "options, steps", [({}, range(6)), ({"log_every_n_steps": 3}, [2, 5]), ({"log_every_n_steps": 50}, [])]
)
def test_a_short_run_is_logged_and_the_report_last(tmp_path, options, steps):
    model = save_tiny_llava(tmp_path / "model")
    logger = Recorder()
    trainer = build_trainer(tmp_path / "run", max_epochs=1, limit_val_batches=1, logger=logger, **options)
    trainer.fit(build_module(model), datamodule=TinyData())
    assert [step for step, metrics in logger.told if "train/loss" in metrics] == list(steps)
    assert logger.told[-1] == (6, scalars(read_report(tmp_path / "run")))


@pytest.mark.parametrize("steps, every", [(3, 1), (40, 2), (5000, 50)])
def test_the_interval_that_a_run_is_logged_at(tmp_path, monkeypatch, steps, every):
    trainer = build_trainer(tmp_path)
    monkeypatch.setattr(type(trainer), "estimated_stepping_batches", steps)
    monkeypatch.setattr("lightning.pytorch.loops.fit_loop._FitLoop.on_run_start", lambda self: None)
    trainer.fit_loop.on_run_start()
    assert trainer.log_every_n_steps == every
