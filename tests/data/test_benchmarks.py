"""Evaluation sets with the keys that published benchmarks use."""

import json

import pytest

from dowser_pl.data.benchmarks import TaskFile, read_task
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
    assert second.messages == [turn("user", "q", IMAGE, "One word.")]
    assert first.images[0].path.name == "a.png"


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "blue", "Blue", 1])
@pytest.mark.parametrize("options", [["red", "blue"], {"A": "red", "B": "blue"}])
def test_multiple_choice(task, answer, options):
    (question,) = task({"question": "q", "choices": options, "answer": answer}, metric="multiple_choice").questions
    assert question.messages == [turn("user", "q\nA. red\nB. blue")]
    assert question.references == ["B", "blue"]


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
    with pytest.raises(ValueError, match=r"Unknown metric 'exact-match', expected one of.*exact_match"):
        TaskFile("t", "t.json", metric="exact-match")
    with pytest.raises(ValueError, match="Task 't': limit must be at least 1, got 0"):
        TaskFile("t", "t.json", limit=0)
