"""`predict` on several processes writes the file of one."""

import json
import re
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from dowser_pl.callbacks import FailTogether, Predictions
from dowser_pl.strategies.fsdp2 import FSDP2Strategy
from tests.distributed.fits import UnevenData
from tests.distributed.harness import alone, outcomes, run
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import build_module

STRATEGIES = {"ddp": lambda: "ddp", "fsdp2": FSDP2Strategy}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


class Asks(UnevenData):
    """Seven questions of different lengths, and three."""

    def evaluation_tasks(self):
        tasks = super().evaluation_tasks()
        several = [*tasks[0].questions, *tasks[1].questions] * 2
        for number, question in enumerate(several[:7]):
            text = " red" * number
            messages = [{"role": "user", "content": [*question.messages[0]["content"], {"type": "text", "text": text}]}]
            several[number] = type(question)(f"{question.id} {number}", messages, question.images, question.references)
        tasks[0].questions[:] = several[:7]
        return tasks


def predict(folder, model, devices, strategy="ddp"):
    """The file, by the process that may read it first."""
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=devices,
        strategy=STRATEGIES[strategy]() if devices > 1 else "auto",
        callbacks=[Predictions(), FailTogether()],
        logger=False,
        enable_progress_bar=False,
    )
    for _ in range(2):  # the second call forgets what the first answered
        trainer.predict(build_module(Path(model)), Asks(), return_predictions=False)
    return (Path(folder) / "predictions.jsonl").read_text()


@pytest.mark.parametrize(
    ("strategy", "ranks"),
    [pytest.param("ddp", 2, marks=pytest.mark.slow), ("fsdp2", 2), pytest.param("fsdp2", 3, marks=pytest.mark.slow)],
)
def test_the_file_is_that_of_one_process(model_folder, tmp_path, strategy, ranks):
    one = alone(predict, tmp_path / "one", model_folder, 1)
    rows = [json.loads(line) for line in one.splitlines()]
    assert [row["task"] for row in rows] == ["colour"] * 7 + ["yesno"] * 3
    assert [row["id"].split()[-1] for row in rows] == list("0123456012")
    assert len({row["prediction"] for row in rows}) > 1
    assert run(predict, tmp_path / "several", model_folder, ranks, strategy, ranks=ranks) == [one] * ranks


@pytest.mark.slow
def test_a_file_that_cannot_be_written_ends_all(model_folder, tmp_path):
    (tmp_path / "run" / "predictions.jsonl").mkdir(parents=True)
    messages = [each.message for each in outcomes(predict, tmp_path / "run", model_folder, 2)]
    assert all(re.search("predictions.jsonl", message) for message in messages), messages
