"""The answers to every question, before and after, as a whole run writes them."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image, ImageChops

from dowser_pl.data.loaders import EvaluationBatches
from dowser_pl.errors import DowserError
from dowser_pl.methods import Magnitude
from dowser_pl.reporting import read_report
from dowser_pl.reporting.answers import read_answers, samples
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


class Dies(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyError("killed")


def fit(model_folder, folder, ckpt_path=None, **options):
    trainer = build_trainer(folder, Magnitude(0.1), **options)
    trainer.fit(build_module(model_folder, lr=5e-2), datamodule=TinyData(), ckpt_path=ckpt_path)


@pytest.fixture(scope="module")
def run(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fit(model_folder, folder)
    return folder


def test_they_lead_to_the_scores_of_the_report(run):
    report, rows = read_report(run), read_answers(run)
    told = [("colour", f"q {number}") for number in range(4)] + [("yesno", f"t {number}") for number in range(4)]
    assert [(row["task"], row["id"]) for row in rows] == told
    for name, task in report.tasks.items():
        mine = [row for row in rows if row["task"] == name]
        for moment in ("before", "after"):
            assert sum(row[f"{moment}_score"] for row in mine) / 4 == getattr(task, moment)
            assert all(isinstance(row[moment], str) for row in mine)
        changes = [row["after_score"] - row["before_score"] for row in mine]
        asked = report.questions[name]
        assert (asked.count, asked.gained, asked.forgotten) == (4, changes.count(1), changes.count(-1))
        assert asked.mean_square_change == sum(change**2 for change in changes) / 4
    assert any(task.change for task in report.tasks.values()), "something is counted"
    assert rows[0]["question"] == "what colour is it ?" and rows[0]["references"] == ["red"]


def test_samples_have_their_pictures(run):
    rows, data = read_answers(run), TinyData()
    shown = [sample.place for name in ("colour", "yesno") for sample in samples(rows, name)]
    assert [place for place, row in enumerate(rows) if "pictures" in row] == sorted(shown)
    asked = [question for task in data.evaluation_tasks() for question in task.questions]
    seen = 0
    for place in shown:
        assert len(rows[place]["pictures"]) == len(asked[place].images)
        for picture, image in zip(rows[place]["pictures"], asked[place].images, strict=True):
            with Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))) as found:
                assert ImageChops.difference(found.convert("RGB"), image).getextrema()[0][1] < 60
                seen += 1
    assert seen


def test_a_killed_run_ends_with_the_same(model_folder, run, tmp_path):
    with pytest.raises(KeyError, match="killed"):
        fit(model_folder, tmp_path, callbacks=[Dies()])
    fit(model_folder, tmp_path, ckpt_path="last")
    assert (tmp_path / "answers.jsonl").read_text() == (run / "answers.jsonl").read_text()
    assert read_report(tmp_path).questions == read_report(run).questions


def test_a_data_module_need_not_tell_more_than_ids(model_folder, tmp_path, monkeypatch):
    whole = EvaluationBatches.__getitem__
    monkeypatch.setattr(EvaluationBatches, "__getitem__", lambda self, rows: without_told(whole(self, rows)))
    fit(model_folder, tmp_path)
    assert [row["id"] for row in read_answers(tmp_path)][:2] == ["q 0", "q 1"]
    assert read_answers(tmp_path)[0]["question"] == ""


def without_told(batch):
    return {key: value for key, value in batch.items() if key != "told"}


def test_a_report_of_counts_alone_has_no_interval_of_the_change(run):
    content = json.loads((run / "report.json").read_text())
    content["questions"]["colour"] = {"count": 4}
    (run / "counts.json").write_text(json.dumps(content))
    report = read_report(run / "counts.json")
    assert report.interval("colour", "after") is not None and report.interval("colour", "change") is None
    (run / "counts.json").write_text(json.dumps({key: content[key] for key in content if key != "questions"}))
    assert read_report(run / "counts.json").interval("colour", "after") is None


class OddIds(TinyData):
    """Ids as they come out of a table of numbers."""

    def evaluation_tasks(self):
        return [
            replace(task, questions=[replace(each, id=np.int64(n)) for n, each in enumerate(task.questions)])
            for task in super().evaluation_tasks()
        ]


def test_ids_may_be_anything(model_folder, tmp_path):
    trainer = build_trainer(tmp_path, Magnitude(0.1))
    trainer.fit(build_module(model_folder), datamodule=OddIds())
    assert (tmp_path / "report.json").exists() and len(read_answers(tmp_path)) == 8


def test_an_image_that_is_gone_costs_its_picture_alone(model_folder, tmp_path, monkeypatch):
    def gone(*_):
        raise FileNotFoundError("on a disk that is not mounted any more")

    monkeypatch.setattr("dowser_pl.module.evaluation.EvaluatedModule.pictures", gone)
    with pytest.warns(UserWarning, match="shows no picture of colour q .: on a disk that is not mounted"):
        fit(model_folder, tmp_path)
    assert (tmp_path / "report.json").exists()


def test_a_metric_that_goes_below_zero_is_told_before_training(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dowser_pl.metrics.answers.AnswerMetric.compute", lambda _: torch.tensor(-1.0))
    with pytest.raises(
        DowserError, match="exact_match of task 'colour' gave -1.0, expected a finite score of at least 0"
    ):
        fit(model_folder, tmp_path)
    assert not (tmp_path / "checkpoints").exists()
