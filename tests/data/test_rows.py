"""Tasks that cannot be asked or scored are found before anything long begins."""

import errno
import warnings

import pytest
from PIL import Image

from dowser_pl.data import Conversation, Question, Task
from dowser_pl.data.rows import checked_tasks, some_pictures
from dowser_pl.errors import FileError
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


class Failing:
    """A picture that cannot be read."""

    def __init__(self, number):
        self.number = number

    def load(self):
        raise OSError(self.number, "it cannot be read")


def shown(*images):
    return [Conversation(f"row {n}", [], list(each)) for n, each in enumerate(images)]


def grey(level):
    return Image.new("RGB", (4, 4), (level, level, level))


def test_pictures_of_rows_come_in_an_order_of_the_seed_and_unreadable_ones_are_passed_over():
    rows = shown(*[[grey(n), grey(200)] for n in range(9)], [], [Failing(errno.ENOENT)])
    levels = [[each.getpixel((0, 0))[0] for each in some_pictures(rows, 99, seed)] for seed in (0, 0, 1)]
    assert levels[0] == levels[1] != levels[2] and all(sorted(each) == list(range(9)) for each in levels)
    assert [each.getpixel((0, 0))[0] for each in some_pictures(rows, 4, 0)] == levels[0][:4]


def test_no_more_pictures_are_opened_than_are_wanted():
    opened = []

    class Counted:
        def load(self):
            opened.append(self)
            return grey(len(opened))

    assert len(some_pictures(shown(*[[Counted()] for _ in range(30)]), 5, 0)) == len(opened) == 5


def test_a_picture_of_several_rows_is_one():
    """Else one that some rows are written after would also be held out."""
    rows = shown(*[[grey(n % 4)] for n in range(20)], [Image.new("RGB", (2, 8), (0, 0, 0))])
    found = [(each.size, each.getpixel((0, 0))) for each in some_pictures(rows, 20, 0)]
    assert sorted(found) == [((2, 8), (0, 0, 0)), *(((4, 4), (n, n, n)) for n in range(4))]


def test_a_failing_disk_is_no_unreadable_picture():
    """Else a run that goes on would find other pictures than it began with."""
    with pytest.raises(FileError, match="look at the disk"):
        some_pictures(shown([Failing(errno.EIO)], [grey(1)]), 2, 0)
