"""Tasks that cannot be asked or scored are found before anything long begins."""

import warnings

import pytest

from dowser_pl.data import Question, Task
from dowser_pl.data.rows import checked_tasks
from tests.data.builders import build_tokenizer

LONG = "\u732b" * 30


def task(*references, metric="exact_match", longest=16):
    questions = [Question(f"q{i}", [], [], each) for i, each in enumerate(references)]
    return Task("t", "upstream", metric, questions, longest)


def test_questions_that_no_answer_can_get_right_are_said():
    rows = (["ja", LONG], [LONG], ["no"])
    with pytest.warns(UserWarning, match=r"'t': 1 of 3 questions have no reference of at most max_new_tokens=16 tok"):
        checked_tasks([task(*rows)], build_tokenizer())
    num_tokens = len(build_tokenizer()(LONG)["input_ids"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked_tasks([task(*rows, longest=num_tokens)], build_tokenizer())
        checked_tasks([task(rows[0], rows[2])], build_tokenizer())
        checked_tasks([task(*rows, metric="cider")], build_tokenizer())  # a part of a caption counts
        checked_tasks([task(*rows)])


def test_a_question_without_reference_is_refused_unless_nothing_is_scored():
    rows = (["ja"], [])
    with pytest.raises(ValueError, match="q1: no reference to score answers of task 't' by"):
        checked_tasks([task(*rows)])
    assert checked_tasks([task(*rows)], labelled=False)


@pytest.mark.parametrize(
    ("references", "metric", "message"),
    [
        ([["a cat"]], "cider", "at least 2"),
        ([["a cat"], ["a cat"]], "cider", "the same words"),
        ([["..."], ["a cat"]], "cider", "captions with words"),
        ([["a dog"]], "multiple_choice", "letter of the right option"),
    ],
)
def test_a_set_in_which_nothing_counts_is_refused(references, metric, message):
    with pytest.raises(ValueError, match=message):
        checked_tasks([task(*references, metric=metric)])
