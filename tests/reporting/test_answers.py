import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from dowser_pl.reporting import Questions
from dowser_pl.reporting.answers import (
    confirmed,
    counted,
    data_uri,
    read_answers,
    samples,
    with_answers,
    write_answers,
)


def said(task: str, scores: list[float], word: str = "yes") -> list[dict]:
    """What an evaluation gives of a task, one row for each score."""
    told = {"task": task, "question": "is it ?", "images": ["a.png"], "references": ["yes"]}
    return [
        {**told, "id": f"{task} {n}", "prediction": f"{word} {n}", "score": score} for n, score in enumerate(scores)
    ]


def both(before: list[float], after: list[float], task: str = "a") -> list[dict]:
    return with_answers(with_answers([], said(task, before, "was"), "before"), said(task, after, "is"), "after")


def test_a_line_has_both_moments(tmp_path: Path) -> None:
    rows = both([1.0, 0.0], [0.5, 1.0])
    write_answers(rows, tmp_path)
    first = json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])
    assert first == {
        "task": "a", "id": "a 0", "question": "is it ?", "images": ["a.png"], "references": ["yes"],
        "before": "was 0", "before_score": 1.0, "after": "is 0", "after_score": 0.5,
    }  # fmt: skip
    assert list(first) == list(rows[1])
    assert read_answers(tmp_path) == rows


def test_a_later_evaluation_takes_the_place_of_an_earlier_one() -> None:
    rows = with_answers(both([1.0], [0.0]), said("a", [0.5], "later"), "after")
    assert (rows[0]["before"], rows[0]["after"], rows[0]["after_score"]) == ("was 0", "later 0", 0.5)


def test_answers_to_other_questions_are_not_taken_for_those_of_before() -> None:
    rows = with_answers(both([1.0, 1.0], [1.0, 1.0]), said("a", [0.0]), "after")
    assert rows[0]["before"] is None and rows[0]["before_score"] is None
    assert counted(rows, {"a": 1.0}, {"a": 0.0}) == {"a": Questions(1)}


def test_counts() -> None:
    rows = both([1.0, 1.0, 0.0, 0.5], [1.0, 0.0, 1.0, 0.75])
    assert counted(rows, {"a": 0.625}, {"a": 0.6875}) == {"a": Questions(4, 2, 1, (1 + 1 + 0.0625) / 4)}


def test_answers_that_do_not_lead_to_the_scores_are_of_another_run() -> None:
    rows = both([1.0, 0.0], [1.0, 1.0])
    assert confirmed(rows, 0.5, "before") and not confirmed(rows, 0.6, "before")
    assert counted(rows, {"a": 0.6}, {"a": 1.0}) == counted(rows, {}, {"a": 1.0}) == {"a": Questions(2)}
    assert counted(rows, {"a": 0.5}, {"a": 0.9}) == counted(rows, {"a": 0.5}, {"b": 0.9}) == {}
    assert counted([], {"a": 0.5}, {"a": 0.5}) == {}


def test_a_metric_that_says_nothing_of_single_answers_counts_none() -> None:
    unscored = [{key: row[key] for key in row if key != "score"} for row in said("b", [0.0])]
    rows = with_answers([], [*said("a", [1.0]), *unscored], "after")
    assert rows[1]["after"] == "yes 0" and rows[1]["after_score"] is None
    assert counted(rows, {}, {"a": 1.0, "b": 0.0}) == {"a": Questions(1)}
    assert [sample.kind for sample in samples(rows, "b")] == ["unchanged"]


def test_samples_are_what_changed_most() -> None:
    rows = both([0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.5, 1.0, 0.5, 0.7, 0.0, 0.9])
    assert [(sample.place, sample.kind) for sample in samples(rows, "a")] == [
        (1, "gained"), (5, "gained"), (3, "gained"), (2, "forgotten"),
    ]  # fmt: skip
    assert [sample.kind for sample in samples(both([1.0] * 5, [1.0] * 5), "a")] == ["unchanged"] * 2
    assert samples(rows, "b") == []


def test_a_run_without_answers(tmp_path: Path) -> None:
    assert read_answers(tmp_path) == []


@pytest.mark.parametrize("line", ["{", "[1]", '{"task": "a"}', "3"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    write_answers(both([1.0], [1.0]), tmp_path)
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 2: .*Delete the file"):
        read_answers(tmp_path)


@pytest.mark.parametrize(("size", "shown"), [((30, 20), (30, 20)), ((2240, 1120), (224, 112))])
def test_pictures_are_small(size: tuple[int, int], shown: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 60).convert("RGBA")
    kind, _, content = data_uri(image).partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(content))) as found:
        assert found.size == shown and kind == f"data:image/{found.format.lower()}"


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\r"])
def test_texts_may_hold_what_ends_a_line_elsewhere(character: str, tmp_path: Path) -> None:
    rows = both([1.0], [0.0]) + with_answers([], said("b", [1.0], f"a{character}b"), "after")
    write_answers(rows, tmp_path)
    assert read_answers(tmp_path) == rows


def test_questions_remember_whether_one_scored_above_one() -> None:
    found = counted(both([0.0, 5.0, 0.0], [0.0, 0.0, 1.5]), {"a": 5 / 3}, {"a": 0.5})
    assert found == {"a": Questions(3, 1, 1, (25 + 2.25) / 3, unit=False)}
