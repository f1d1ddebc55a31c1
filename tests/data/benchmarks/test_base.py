"""Evaluation sets with the keys that published benchmarks use."""

import json

import pytest

from dowser_pl.data.benchmarks import TaskFile, read_task
from dowser_pl.data.rows import checked_tasks
from tests.data.builders import IMAGE, picture, turn


@pytest.fixture
def task(tmp_path):
    picture().save(tmp_path / "a.png")

    def make(*rows, **options):
        path = tmp_path / "task.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return read_task(TaskFile("t", str(path), **options))

    return make


@pytest.mark.parametrize(
    ("row", "references"),
    [
        ({"text": "q", "reference": "a"}, ["a"]),
        ({"question": "q", "answer": 3}, ["3"]),
        ({"prompt": "q", "answers": ["a", "b"]}, ["a", "b"]),
        ({"question": "q", "captions": ["one", "two"]}, ["one", "two"]),
        ({"question": "q", "caption": "one"}, ["one"]),
        (
            {"question": "q", "answers": [{"answer": "a", "answer_id": 1}, {"answer": "a"}, {"answer": "b"}]},
            ["a", "a", "b"],
        ),
        ({"question": "q", "answer": "a", "answers": ["a", "b"]}, ["a", "b"]),  # all annotators, not the commonest
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["a"]),
    ],
)
def test_keys(task, row, references):
    (question,) = task(row).questions
    assert question.messages == [turn("user", "q")]
    assert question.references == references
    assert question.images == []


def test_images_and_suffix(task):
    rows = [{"image": "a.png", "question": "q", "answer": "a"}, {"image": "a.png", "text": "q\n<image>", "answer": "a"}]
    first, second = task(*rows, prompt_suffix="One word.").questions
    assert first.messages == [turn("user", IMAGE, "q\nOne word.")]
    assert second.messages == [turn("user", "q\n", IMAGE, "\nOne word.")]
    assert first.images[0].path.name == "a.png"


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "blue", "Blue", 1])
@pytest.mark.parametrize("options", [["red", "blue"], {"A": "red", "B": "blue"}])
def test_multiple_choice(task, answer, options):
    (question,) = task({"question": "q", "choices": options, "answer": answer}, metric="multiple_choice").questions
    assert question.messages == [turn("user", "q\nA. red\nB. blue")]
    assert question.references == ["B", "blue"]


@pytest.mark.parametrize(
    ("options", "answer", "right"),
    [
        (["1", "2", "3"], 1, ["B", "2"]),  # ScienceQA: a JSON number is the index
        (["1", "2", "3"], "1", ["A", "1"]),
        ([3, 2, 1], 1, ["C", "1"]),
        ({"A": "red", "B": "blue", "C": None}, "blue", ["B", "blue"]),
    ],
)
def test_options_that_are_numbers_or_missing(task, options, answer, right):
    (question,) = task({"question": "q", "options": options, "answer": answer}, metric="multiple_choice").questions
    assert question.references == right
    assert "None" not in question.messages[0]["content"][0]["text"]


def test_captions_need_no_question(task):
    (question,) = task({"image": "a.png", "caption": ["a", "b"]}, metric="cider", prompt_suffix="Describe.").questions
    assert question.messages == [turn("user", IMAGE, "Describe.")]


def test_question_id_names_the_row(task):
    assert task({"question_id": 17, "text": "q", "answer": "a"}).questions[0].id == "task.jsonl line 1 (id 17)"


@pytest.mark.parametrize(("metric", "answer"), [("multiple_choice", "a dog"), ("cider", "...")])
def test_a_reference_that_the_metric_cannot_score(task, metric, answer):
    with pytest.raises(ValueError, match=r"task\.jsonl line 1: .*expected"):
        task({"question": "q", "answer": answer}, metric=metric)


def test_limit_is_spread_over_the_file(task):
    rows = [{"question": str(i), "answer": "a"} for i in range(10)]
    asked = [q.messages[0]["content"][0]["text"] for q in task(*rows, limit=4).questions]
    assert asked == ["0", "2", "5", "7"]
    assert len(task(*rows, limit=99).questions) == 10


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "a"}, r"line 1: no question: expected one of the keys .*got \['answer'\]"),
        ({"question": "q"}, r"line 1: no reference"),
        ({"question": "q", "answers": []}, r"line 1: no reference"),
        ({"question": "q", "answer": "x", "options": ["a", "b"]}, r"line 1: the answer \['x'\] is none of the options"),
        ({"question": "q", "answer": "x", "options": "x or y"}, r"line 1: options are a list of at most 26"),
        ({"question": "q", "answer": "x", "options": ["x"] * 27}, r"line 1: options are a list of at most 26"),
        ({"question": "<image> q", "answer": "x"}, "line 1: got 0 images, expected 1"),
        ({"question": "q", "answer": "x", "image": "z.png"}, r"line 1: no image at .*z\.png"),
    ],
)
def test_bad_rows(task, row, message):
    with pytest.raises(ValueError, match=message):
        task(row)


def test_bad_rows_can_be_left_out(tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n{"question": "q"}')
    with pytest.warns(UserWarning, match="t: left out 1 of 2 rows"):
        assert len(read_task(TaskFile("t", str(path)), skip_bad_rows=True).questions) == 1


def test_task_file_is_checked_when_it_is_made():
    with pytest.raises(ValueError, match=r"metric: got 'exact-match', expected one of.*exact_match"):
        TaskFile("t", "t.json", metric="exact-match")
    with pytest.raises(ValueError, match="Task 't': limit must be at least 1, got 0"):
        TaskFile("t", "t.json", limit=0)


@pytest.mark.parametrize(
    ("options", "longest"),
    [({}, 16), ({"metric": "vqa"}, 16), ({"metric": "cider"}, 128), ({"metric": "cider", "max_new_tokens": 20}, 20)],
)
def test_captions_have_room_for_a_sentence(task, options, longest):
    rows = [{"text": "q", "answer": "a cat"}, {"text": "q", "answer": "a dog"}]
    assert task(*rows, **options).max_new_tokens == longest


def test_a_set_in_which_nothing_counts_ends_before_anything_is_measured(task):
    for captions, message in ((["a cat"], "at least 2"), (["a cat", "a cat"], "consist of the same words")):
        with pytest.raises(ValueError, match=message):
            checked_tasks([task(*({"text": "q", "caption": one} for one in captions), metric="cider")])
