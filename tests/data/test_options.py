"""Numbers as text, options in every layout that benchmarks have, and which of them is right."""

import json

import pytest

from dowser_pl.data.benchmarks import TaskFile, read_task
from dowser_pl.data.options import as_text
from tests.data.builders import turn


@pytest.fixture
def ask(tmp_path):
    def make(row, metric="exact_match"):
        path = tmp_path / "task.jsonl"
        path.write_text(row if isinstance(row, str) else json.dumps(row))
        return read_task(TaskFile("t", str(path), metric=metric)).questions[0]

    return make


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("3.0", "3.0"),
        (3, "3"),
        (3.0, "3"),
        (-0.0, "0"),
        (2.5, "2.5"),
        (10.0, "10"),
        (1e20, "100000000000000000000"),
        (1e-7, "0.0000001"),
        (10**30, "1" + "0" * 30),
        (0.1, "0.1"),
    ],
)
def test_numbers_are_written_as_one_writes_them(value, text):
    assert as_text("it", value) == text


@pytest.mark.parametrize("value", [None, True, False, float("nan"), float("inf"), ["a"], {"a": 1}])
def test_what_is_neither_text_nor_number(value):
    with pytest.raises(ValueError, match=r"^it must be text or a number, got"):
        as_text("it", value)


@pytest.mark.parametrize(
    "row",
    [
        {"answers": ["red", None]},
        {"answers": [{"answer": None, "answer_id": 1}]},
        {"answers": [["red"]]},
        {"answers": [{"text": "red"}]},
        {"answer": False},
        '{"question": "q", "answers": ["red", NaN]}',
    ],
)
def test_answers_are_never_cast(ask, row):
    row = row if isinstance(row, str) else {"question": "q", **row}
    with pytest.raises(ValueError, match=r"line 1: the answer must be text or a number, got"):
        ask(row)


def test_an_answer_that_is_nan_is_none(ask):
    with pytest.raises(ValueError, match=r"line 1: no reference: .*got nothing under \['answer'\]"):
        ask('{"question": "q", "answer": NaN}')


@pytest.mark.parametrize("question", [5, True, {"text": "q"}, ["q"]])
def test_a_question_is_text(ask, question):
    with pytest.raises(ValueError, match="line 1: `question` must be text, got"):
        ask({"question": question, "answer": "a"})


def test_an_empty_question_gives_way(ask):
    assert ask('{"question": NaN, "text": "q", "answer": 3.0}').messages == [turn("user", "q")]


@pytest.mark.parametrize(
    "options",
    [
        {"A": "dog", "B": "cat"},
        {"B": "cat", "A": "dog", "C": None, "D": "", "E": float("nan")},
        {"option_a": "dog", "option_b": "cat"},
        {"Option A": "dog", "Option B": "cat"},
        {"optionA": "dog", "optionB": "cat"},
        {"choice_a": "dog", "choice_b": "cat", "choices": []},
        {"options": ["dog", "cat"]},
        {"options": ["dog", "cat", None, ""]},
        {"choices": "['dog', 'cat']"},
        {"options": '["dog", "cat"]'},
        {"choices": {"text": ["dog", "cat"], "label": ["A", "B"]}},
        {"options": {"A": "dog", "B": "cat", "C": None}},
        {"options": {"a": "dog", "b": "cat"}},
        {"choices": {"(A)": "dog", "(B)": "cat"}},
    ],
)
@pytest.mark.parametrize("answer", ["B", "\uff22", "cat", 1, 1.0])
def test_layouts(ask, options, answer):
    question = ask({"question": "q", "answer": answer, **options}, "multiple_choice")
    assert question.messages == [turn("user", "q\nA. dog\nB. cat")]
    assert question.references == ["B", "cat"]


def test_the_hint_comes_first(ask):
    row = {"hint": "It barks.", "question": "q", "A": "dog", "B": "cat", "answer": "A"}
    assert ask(row).messages == [turn("user", "It barks.\nq\nA. dog\nB. cat")]
    assert ask(json.dumps(row).replace('"It barks."', "NaN")).messages == [turn("user", "q\nA. dog\nB. cat")]


def test_a_gap_keeps_the_letters(ask):
    question = ask({"question": "q", "A": "dog", "B": None, "C": "cat", "answer": "C"}, "multiple_choice")
    assert question.messages == [turn("user", "q\nA. dog\nC. cat")]
    assert question.references == ["C", "cat"]


@pytest.mark.parametrize("row", [{"A": "red", "Q": "what?"}, {"I": 1, "V": 2}, {"A": "x"}])
def test_columns_that_are_no_options(ask, row):
    assert ask({"question": "q", "answer": "red", **row}).messages == [turn("user", "q")]


def test_options_that_are_numbers(ask):
    question = ask({"question": "q", "options": [1.0, 2.5, 3.0], "answer": 3}, "multiple_choice")
    assert question.messages == [turn("user", "q\nA. 1\nB. 2.5\nC. 3")]
    assert question.references == ["C", "3"]


def test_a_label_of_the_file_is_meant_before_a_text(ask):
    row = {"question": "q", "A": "B", "B": "A", "answer": "B"}
    assert ask(row, "multiple_choice").references == ["B", "A"]
    with pytest.raises(ValueError, match=r"line 1: the answer \['B'\] means several of the options"):
        ask({"question": "q", "options": ["B", "A"], "answer": "B"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"options": ["dog", "cat"], "answer": True}, "the answer must be text or a number, got True"),
        ({"options": ["dog", "cat"], "answer": -1}, "is none of the options"),
        ({"options": ["dog", "cat"], "answer": 0.5}, "is none of the options"),
        ({"options": ["dog", "dog"], "answer": "dog"}, "means several of the options"),
        ({"options": ["dog", "cat"], "answers": ["A", "B"]}, "means several of the options"),
        ({"options": ["dog", None, "cat"], "answer": "A"}, "options are a list .*none of them empty"),
        ({"options": ["dog"], "answer": "A"}, "expected at least two options"),
        ({"option_a": "dog", "answer": "A"}, "expected at least two options"),
        ({"options": [True, False], "answer": "A"}, "option A must be text or a number, got True"),
        ({"options": "['dog' 'cat']", "answer": "dog"}, "expected at least two options"),
        ({"options": "dog, cat", "answer": "dog"}, "options are a list"),
        ({"A": "dog", "B": "cat", "option_a": "bird", "answer": "A"}, "expected one column per option"),
        ({"options": {"text": ["a", "b"], "label": ["A"]}, "answer": "a"}, "must be text or a number"),
    ],
)
def test_options_that_cannot_be_asked(ask, row, message):
    with pytest.raises(ValueError, match=f"line 1: .*{message}"):
        ask({"question": "q", **row})
