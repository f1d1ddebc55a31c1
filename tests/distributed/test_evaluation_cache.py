"""Two processes share the questions, and agree on what is kept of their answers."""

import json
from unittest.mock import patch

import pytest

from dowser_pl.module import MultimodalModule
from tests.distributed.fits import UnevenData, fit
from tests.distributed.harness import run
from tests.tiny_models import save_tiny_llava


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def twice(folder, model):
    """Per run: batches of the base that this process answered, and the scores before and after."""
    asked, validate, found = [], MultimodalModule.validation_step, []

    def step(self, *arguments):
        asked.append(self.trainer.sanity_checking)
        return validate(self, *arguments)

    for name in ("first", "second"):
        asked.clear()
        with patch.object(MultimodalModule, "validation_step", step):
            ended = fit(folder / name, model, data=UnevenData(), evaluation_cache=folder / "cache", max_epochs=1)
        found.append((sum(asked), ended.before, ended.scores))
    return found


@pytest.mark.slow
def test_a_second_run_asks_on_no_process(tmp_path, model_folder):
    for first, second in run(twice, tmp_path, model_folder):
        assert first[0] == 2 and second[0] == 0, "two tasks of one batch a process"
        assert first[1:] == second[1:]
    (file,) = (tmp_path / "cache").glob("*.evaluation.json")
    assert len(json.loads(file.read_text())["identity"]["protocol"]["processes"]) == 2
    answers = [(tmp_path / name / "answers.jsonl").read_text() for name in ("first", "second")]
    assert answers[0] == answers[1] and answers[0].count("\n") == 6
    told = [json.loads(line)["id"] for line in answers[0].splitlines()]
    assert told == [question.id for task in UnevenData().evaluation_tasks() for question in task.questions]
