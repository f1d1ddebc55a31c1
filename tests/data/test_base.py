"""`MultimodalData` without a trainer: the contract, the checks, the cache."""

import pytest
import torch

from dowser_pl.data import MultimodalData, Question, Task
from tests.data.builders import build_llava, chat_template, many_images, one_image, question, text_only, turn
from tests.data.contract import check_data

ROWS = [one_image(), many_images(), text_only()]


class Tiny(MultimodalData):
    def __init__(self, rows=ROWS, tasks=None, **options):
        super().__init__(**options)
        self.rows, self.given = rows, tasks
        self.processor = build_llava(chat_template())

    def train_conversations(self):
        return self.rows

    def evaluation_tasks(self):
        questions = [question(row) for row in ROWS]
        if self.given is not None:
            return self.given
        return [Task("a", "downstream", "exact_match", questions), Task("b", "upstream", "vqa", questions[:1])]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_contract(num_workers):
    data = Tiny(batch_size=2, eval_batch_size=2, num_workers=num_workers)
    data.setup("fit")
    check_data(data)
    for test, predict, validation in zip(
        data.test_dataloader(), data.predict_dataloader(), data.val_dataloader(), strict=True
    ):
        assert test is predict is validation


def test_setup_reads_once():
    data = Tiny()
    data.setup("validate")
    tasks = data.tasks
    data.setup("fit")
    assert data.tasks is tasks


def test_evaluation_batches_are_kept_in_memory_if_they_fit(monkeypatch):
    data = Tiny(eval_batch_size=1)
    data.setup("validate")
    loader = data.val_dataloader()[0]
    first = list(loader)
    first[0].pop("references")
    first[0]["inputs"].pop("pixel_values")
    monkeypatch.setattr(type(loader.dataset), "__getitem__", None)  # from here on everything comes from the cache
    second = list(loader)
    assert second[0]["references"] == [["red"]]
    assert second[0]["inputs"]["pixel_values"].shape == (1, 3, 16, 16)
    assert second[0]["inputs"]["input_ids"] is first[0]["inputs"]["input_ids"]


def test_a_set_that_does_not_fit_is_encoded_anew():
    data = Tiny(eval_batch_size=1, evaluation_cache_mb=0)
    data.setup("validate")
    loader = data.val_dataloader()[0]
    first, second = list(loader), list(loader)
    assert second[0]["inputs"]["input_ids"] is not first[0]["inputs"]["input_ids"]
    assert torch.equal(second[0]["inputs"]["input_ids"], first[0]["inputs"]["input_ids"])


def test_a_pass_that_ends_early_is_not_taken_for_the_set():
    data = Tiny(eval_batch_size=1)
    data.setup("validate")
    loader = data.val_dataloader()[0]
    next(iter(loader))
    assert len(list(loader)) == 3


TASK = Task("a", "upstream", "exact_match", [Question("q", [turn("user", "x")], [], ["y"])])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": []}, "training set is empty: got 0 rows"),
        ({"tasks": [Task("a", "upstream", "exact_match", [])]}, "Task 'a' is empty"),
        ({"tasks": [TASK, TASK]}, "Two evaluation tasks are called 'a'"),
        ({"tasks": [Task("a", "upstream", "bleu", TASK.questions)]}, "metric: got 'bleu', expected one of"),
        ({"chat_template": "nowhere.jinja"}, "chat_template: expected Jinja text, the path"),
    ],
)
def test_bad_settings_end_the_setup(options, message):
    with pytest.raises(ValueError, match=message):
        Tiny(**options).setup("fit")


def test_calls_in_the_wrong_order():
    data = Tiny()
    with pytest.raises(ValueError, match=r'call setup\("fit"\) first'):
        data.train_dataloader()
    with pytest.raises(ValueError, match=r'call setup\("validate"\) first'):
        data.val_dataloader()
    data.processor = None
    with pytest.raises(ValueError, match="No processor"):
        data.setup("fit")
    assert data.state_dict() == {}
