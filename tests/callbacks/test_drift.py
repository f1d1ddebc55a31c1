"""The meter of drift in whole runs: what it says, in logs and reports, across a kill, and where there is none."""

import json

import pytest
import torch
from lightning.pytorch import Callback

from dowser_pl.callbacks import Dowser
from dowser_pl.functional.divergence import kl_divergence
from dowser_pl.importance.base_outputs import current_logits
from dowser_pl.importance.replay import Replay
from dowser_pl.methods import Full, Magnitude, Wise
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import KillAt, Killed, TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


class Drifts(Callback):
    """The logged drift of every validation."""

    def __init__(self):
        self.kl = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.kl.append(float(trainer.callback_metrics["drift/kl"]))


class OnlyDownstream(TinyData):
    def evaluation_tasks(self):
        return [task for task in super().evaluation_tasks() if task.role == "downstream"]


def fit(folder, model_folder, method=None, data=None, callbacks=(), ckpt_path=None, drift=True, lr=1e-2, **options):
    trainer = build_trainer(folder, method or Magnitude(0.2), callbacks, drift=drift, **options)
    trainer.fit(build_module(model_folder, lr=lr), datamodule=data or TinyData(), ckpt_path=ckpt_path)
    return trainer, next(each for each in trainer.callbacks if isinstance(each, Dowser))


def report(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
def test_nothing_learnt_is_no_drift_and_more_learnt_is_more(tmp_path, model_folder):
    kl = []
    for name, lr in [("still", 1e-12), ("little", 1e-4), ("much", 1e-2)]:
        fit(tmp_path / name, model_folder, Full(), lr=lr)
        kl.append(report(tmp_path / name)["drift"])
    assert kl[0]["kl"] == pytest.approx(0.0, abs=1e-6) and kl[0]["agreement"] == 1.0
    assert kl[0]["kl"] < kl[1]["kl"] < kl[2]["kl"] and kl[2]["agreement"] < 1.0
    assert set(kl[2]["sources"]) >= {"text", "noise"}


def test_it_is_the_divergence_of_the_final_model(tmp_path, model_folder):
    """By the definition, on the rows that the meter keeps, with two models that are loaded afresh."""
    dowser = fit(tmp_path, model_folder, Full(), export=True)[1]
    base, tuned = (build_module(folder) for folder in (model_folder, tmp_path / "model"))
    total, positions = 0.0, 0
    for module in (base, tuned):
        module.configure_model()
        module.eval()
    for row in (row for row in dowser._meter.base.rows if row.kind == "text"):
        said = []
        for module in (base, tuned):
            with torch.no_grad():
                said.append(module.network(input_ids=row.tokens[None]).logits[0, :-1].double().log_softmax(-1))
        total += float((said[0].exp() * (said[0] - said[1])).sum())
        positions += len(row.tokens) - 1
    assert dowser.drift["text"].positions == positions
    assert dowser.drift["text"].kl == pytest.approx(total / positions, rel=1e-4)


def test_every_validation_logs_it_and_the_last_is_that_of_the_report(tmp_path, model_folder):
    listening = Drifts()
    fit(tmp_path, model_folder, callbacks=[listening])
    assert len(listening.kl) == 2 and listening.kl[0] != listening.kl[1]
    assert report(tmp_path)["drift"]["kl"] == pytest.approx(listening.kl[-1], rel=1e-5)


@pytest.mark.slow
def test_a_merge_is_measured_as_it_ends(tmp_path, model_folder):
    drifts = {}
    for share in (0.0, 0.5, 1.0):  # of the update that is kept
        fit(tmp_path / str(share), model_folder, Wise(share))
        drifts[share] = report(tmp_path / str(share))["drift"]["kl"]
    assert abs(drifts[0.0]) < 1e-6 < drifts[0.5] < drifts[1.0]


@pytest.mark.slow
def test_a_killed_run_goes_on_against_the_same_base(tmp_path, model_folder):
    fit(tmp_path / "whole", model_folder)
    with pytest.raises(Killed):
        fit(tmp_path / "cut", model_folder, callbacks=[KillAt(8)])
    fit(tmp_path / "cut", model_folder, ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert report(tmp_path / "cut")["drift"] == report(tmp_path / "whole")["drift"]


def test_without_upstream_data_the_report_tells_it(tmp_path, model_folder, capsys):
    fit(tmp_path, model_folder, data=OnlyDownstream())
    said = " ".join(capsys.readouterr().out.split())
    assert "No upstream task was given: this is all that is known of forgetting here." in said


@pytest.mark.slow
def test_measuring_changes_no_bit_of_training(tmp_path, model_folder):
    with_meter = fit(tmp_path / "a", model_folder)[0].lightning_module.state_dict()
    without = fit(tmp_path / "b", model_folder, drift=False)[0].lightning_module.state_dict()
    assert all(torch.equal(with_meter[name], without[name]) for name in without)
    assert report(tmp_path / "b")["drift"] is None


@pytest.mark.slow
def test_a_head_that_is_trained_too_is_measured_against_that_of_the_base(tmp_path, model_folder):
    trainer = build_trainer(tmp_path, Magnitude(0.0), drift=True, replay=Replay(), max_epochs=1, export=True)
    trainer.fit(build_module(model_folder, lr=3e-2, also_train=["lm_head"]), datamodule=TinyData())
    dowser = next(each for each in trainer.callbacks if isinstance(each, Dowser))
    assert dowser._meter.base.hidden is None and dowser._replayer.base.hidden is None
    base, tuned = (build_module(folder) for folder in (model_folder, tmp_path / "model"))
    rows = [row for row in dowser._meter.base.rows if row.kind == "text"]
    said = []
    for module in (base, tuned):
        module.configure_model()
        with torch.no_grad():
            said.append(current_logits(module.eval().network, rows))
    assert dowser.drift["text"].kl == pytest.approx(float(kl_divergence(*said).mean()), rel=1e-3)
    assert dowser.drift["text"].kl > 1e-3


def test_a_run_that_diverged_has_a_report(tmp_path, model_folder):
    with pytest.warns(UserWarning, match="it diverged, and drift is not told"):
        fit(tmp_path, model_folder, Full(), lr=1e20, max_steps=1)
    assert report(tmp_path)["drift"] is None
