"""Metrics of published protocols, against rows scored by hand and independent forms of their rules."""

import random
from functools import cache

import pytest

from dowser_pl.metrics import build_metric
from dowser_pl.metrics.mmbench import mmbench_letter
from dowser_pl.metrics.protocols import edit_distance


def score(name: str, *rows: tuple[str, list[str]]) -> float:
    metric = build_metric(name)
    metric.update([said for said, _ in rows], [right for _, right in rows])
    return float(metric.compute())


@pytest.mark.filterwarnings("ignore:.*nothing can be read")
@pytest.mark.parametrize(
    ("name", "said", "right", "expected"),
    [
        ("gqa", "Yes.", ["yes"], 1),
        ("gqa", "Yes...", ["yes"], 1),
        ("gqa", "the yes", ["yes"], 0),
        ("gqa", "t-shirt", ["t shirt"], 0),
        ("exact_match_unpunctuated", "T-Shirt!", ["tshirt"], 1),
        ("exact_match_unpunctuated", "t-shirt", ["t shirt"], 0),
        ("scienceqa", "B", ["B", "west"], 1),
        ("scienceqa", "b", ["B", "west"], 0),
        ("scienceqa", "B. west", ["B", "west"], 1),
        ("scienceqa", "B.west", ["B", "west"], 0),
        ("scienceqa", "I think: The answer is B.", ["B", "west"], 1),
        ("scienceqa", "The answer is A. The answer is B.", ["B", "west"], 0),
        ("scienceqa", "west", ["B", "west"], 0),
        ("scienceqa_prefix", "b", ["B", "west"], 1),
        ("scienceqa_prefix", "B.west", ["B", "west"], 1),
        ("scienceqa_prefix", "b. west", ["B", "west"], 0),
        ("scienceqa_prefix", "The answer is B.", ["B", "west"], 0),
        ("relaxed_accuracy", "10.5", ["10"], 1),
        ("relaxed_accuracy", "10.51", ["10"], 0),
        ("relaxed_accuracy", "12%", ["0.12"], 1),
        ("relaxed_accuracy", "1.6065", ["1.53"], 0),  # 5 %, which floats divide to 0.05000000000000001
        ("relaxed_accuracy", "5", ["inf"], 0),
        ("relaxed_accuracy", "Red", ["red"], 1),
        ("relaxed_accuracy", "0.001", ["0"], 0),
        ("relaxed_accuracy", "0", ["0"], 1),
        ("anls", "hello", ["HELLO  "], 1),
        ("anls", "hallo", ["hello"], 0.8),
        ("anls", "abxy", ["abcd"], 0.5),
        ("anls", "axyz", ["abcd"], 0),
        ("anls", "axyz", ["abcd", "axyy"], 0.75),
        ("pope", "Yes, there is a dog.", ["yes"], 1),
        ("pope", "No, there is none.", ["no"], 1),
        ("pope", "There is not.", ["no"], 1),
        ("pope", "NO", ["no"], 0),
        ("pope", "Yes. No.", ["yes"], 1),
        ("pope", "", ["yes"], 1),
    ],
)
def test_rows_scored_by_hand(name, said, right, expected):
    assert score(name, (said, right)) == pytest.approx(expected)


def test_edit_distance_is_that_of_its_recursive_definition():
    @cache
    def recursive(one: str, other: str) -> int:
        if not one or not other:
            return len(one) + len(other)
        replaced = recursive(one[1:], other[1:]) + (one[0] != other[0])
        return min(replaced, recursive(one[1:], other) + 1, recursive(one, other[1:]) + 1)

    choose = random.Random(0)
    for _ in range(200):
        one, other = ("".join(choose.choices("abc", k=choose.randrange(7))) for _ in range(2))
        assert edit_distance(one, other) == recursive(one, other)


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    rows = [("Yes", ["yes"])] * 3 + [("Yes", ["no"])] * 2 + [("no", ["yes"])] * 4 + [("no", ["no"])]
    precision, recall = 3 / 5, 3 / 7
    assert score("pope_f1", *rows) == pytest.approx(2 * precision * recall / (precision + recall))
    assert score("pope", *rows) == pytest.approx(4 / 10)
    assert score("pope_f1", ("no", ["no"])) == 0


@pytest.mark.parametrize("name", ["pope", "pope_f1"])
def test_pope_knows_yes_and_no_alone(name):
    with pytest.raises(ValueError, match='expected "yes" or "no"'):
        score(name, ("yes", ["maybe"]))


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("The answer is (B).", "B"),
        ("Answer: B", "B"),
        ("A", "A"),
        ("A bird it is", None),  # an article, among more than three words
        ("A good brown cat", "B"),  # the text of the one option that is in it
        ("A B", None),
        ("It is the CAT", "B"),
        ("a cat and a dog", None),
        ("b", None),
        ("", None),
    ],
)
def test_letters_by_the_rules(said, letter):
    assert mmbench_letter(said, {"A": "dog", "B": "cat"}) == letter


def turns(group: int, *said: tuple[str, str]) -> list[tuple[str, list[str]]]:
    return [(answer, [f"{group}", right, "A. dog", "B. cat"]) for answer, right in said]


def test_a_question_counts_if_all_its_turns_are_right():
    rows = [*turns(1, ("A", "A"), ("B", "B")), *turns(2, ("A", "A"), ("A", "B")), *turns(3, ("B", "B"))]
    assert score("mmbench", *rows) == pytest.approx(2 / 3)
    random.Random(1).shuffle(rows)
    assert score("mmbench", *rows) == pytest.approx(2 / 3)


@pytest.mark.parametrize("references", [["B"], ["1", "B", "A. dog"], ["1", "F", "A. dog", "B. cat"]])
def test_references_of_another_form_are_refused(references):
    with pytest.raises(ValueError, match="expected the group"):
        score("mmbench", ("B", references))
