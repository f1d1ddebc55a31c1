"""DDP on two ranks against one process: the same masks and frozen bits, trained values within rounding."""

from itertools import product

import pytest
import torch

from dowser_pl.methods import Dare, Lora, ModelTailor, Spider
from dowser_pl.models.generation import greedy_answers
from dowser_pl.models.lora import LoraSettings
from tests.distributed.fits import UnevenData, difference, fit
from tests.distributed.harness import alone, run
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import build_module

CLIPPING = {
    "unclipped": {},
    "norm": {"gradient_clip_val": 0.05},
    "value": {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"},
}
PRECISIONS = ("32-true", "bf16-true", "bf16-mixed")
# every pair of a precision, a clipping and an accumulation
CASES = {
    f"{precision} {clipping} {1 + (row + column) % 2}": {
        "precision": precision,
        "accumulate_grad_batches": 1 + (row + column) % 2,
        "optimizer": "sgd",
        **CLIPPING[clipping],
    }
    for (row, precision), (column, clipping) in product(enumerate(PRECISIONS), enumerate(CLIPPING))
}
CASES |= {
    "dense 32-true norm 2": CASES["32-true norm 2"] | {"update": "dense"},
    "dense bf16-mixed unclipped 1": CASES["bf16-mixed unclipped 1"] | {"update": "dense"},
    "spider": {"method": Spider(), "optimizer": "sgd"},
    "dare": {"method": Dare(0.3)},
    "model tailor": {"method": ModelTailor(0.1)},
    "lora": {"method": Lora(), "module": {"lora": LoraSettings(r=4, alpha=8.0)}},
    "also train": {"module": {"also_train": ["projector", "norms"]}, "optimizer": "sgd"},
    "answers of unequal length": {"data": UnevenData(12), "optimizer": "sgd"},
}


def bound_of(name: str) -> float:
    """Share of the longest way of a weight by which another order of additions may move one.

    Half precision rounds gradients of half a batch otherwise than those of a whole one, and where values are clipped
    a rounding of the smallest of them is as long as a step.
    """
    if "bf16" in name:
        return 0.25 if "value" in name else 0.05
    return 1e-3 if "value" in name or "optimizer" not in CASES[name] else 1e-5


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


QUICK = {
    "32-true norm 2",
    "bf16-mixed unclipped 1",
    "spider",
    "answers of unequal length",
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in CASES])
def test_two_ranks_end_where_one_process_does(model_folder, tmp_path, name):
    options = {"max_epochs": 1, "num_rows": 16, **CASES[name]}
    one = alone(fit, tmp_path / "one", model_folder, **options)
    first, second = run(fit, tmp_path / "two", model_folder, **options)
    assert one.masks.keys() == first.masks.keys() == second.masks.keys()
    for matrix, mask in one.masks.items():
        assert torch.equal(mask, first.masks[matrix]) and torch.equal(mask, second.masks[matrix]), matrix
    for weight in one.weights:
        assert torch.equal(first.weights[weight], second.weights[weight]), weight
    assert one.frozen_digest["after"] == first.frozen_digest["after"] == second.frozen_digest["after"]
    assert first.counts[0].changed == 0 and first.counts[1].changed > 0
    assert first.steps == one.steps > 0
    assert difference(first, one) <= bound_of(name) * one.way


class Answers(UnevenData):
    """Three questions a task, of which the base model answers the first as expected."""

    def __init__(self, answers: list[str], num_rows: int) -> None:
        super().__init__(num_rows)
        self.answers = answers

    def evaluation_tasks(self):
        tasks = super().evaluation_tasks()
        for task, answer in zip(tasks, self.answers, strict=True):
            for number, question in enumerate(task.questions):
                question.references[:] = [answer] if number == 0 else ["never said"]
        return tasks


def first_answers(model):
    """What the base model says to the first question of each task."""
    data, said = UnevenData(), []
    module = build_module(model)
    module.configure_model()
    data.processor = module.processor
    data.setup("validate")
    for task, loader in zip(data.tasks, data.val_dataloader(), strict=True):
        inputs = next(iter(loader))["inputs"]
        said += greedy_answers(module.network.eval(), module.processor.tokenizer, inputs, task.max_new_tokens)[:1]
    return said


@pytest.mark.slow
def test_uneven_data_is_counted_once_and_nothing_waits(model_folder, tmp_path):
    """13 rows and 3 questions for 2 ranks; twice as many rows as expected would give scores of 1/4 or 1/2."""
    data = Answers(alone(first_answers, model_folder), 13)
    ended = run(fit, tmp_path, model_folder, data=data, max_epochs=1)
    for rank in ended:
        assert rank.before == pytest.approx({"colour": 1 / 3, "yesno": 1 / 3}, abs=1e-6)
        assert rank.steps == 4 and len(rank.seen) == 4
    rows = sorted(row for rank in ended for batch in rank.seen for row in batch)
    assert len(rows) == 14 and set(rows) == {f"row {index}" for index in range(13)}
    assert ended[0].scores == ended[1].scores
    assert ended[0].report["tasks"]["colour"].before == pytest.approx(1 / 3, abs=1e-6)
