"""Two processes, sharded or not, measure the likelihoods that one does."""

import pytest

from dowser_pl.data import Question, Task
from dowser_pl.strategies.fsdp2 import FSDP2Strategy
from tests.distributed.harness import run
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer, turn

STRATEGIES = {"ddp": lambda: "ddp", "fsdp2": FSDP2Strategy}
OPTIONS = ["red", "green", "blue", "a big house", "no", "two small stars"]


class Measured(TinyData):
    """Five questions of different numbers of options, so that processes have different numbers of batches."""

    def evaluation_tasks(self):
        asked = [turn("user", "is it red ?")]
        questions = [Question(f"q {n}", asked, [], [OPTIONS[n]], candidates=OPTIONS[: 2 + n]) for n in range(5)]
        texts = [
            Question(text, [], [], [text], candidates=[text])
            for text in ("the sky is blue .", "it is", "a dog is on it")
        ]
        return [
            Task("choice", "downstream", "choice_likelihood", questions),
            Task("text", "upstream", "perplexity", texts),
        ]


def measured(folder, model, strategy=None):
    module = build_module(model)
    options = {} if strategy is None else {"devices": 2, "strategy": STRATEGIES[strategy]()}
    build_trainer(folder, **options).validate(module, Measured())
    return module.scores


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_scores_are_those_of_one_process(tmp_path, strategy):
    model = save_tiny_llava(tmp_path / "model")
    alone = measured(tmp_path, model)
    for scores in run(measured, tmp_path, model, strategy):
        assert scores == pytest.approx(alone, rel=1e-6)
