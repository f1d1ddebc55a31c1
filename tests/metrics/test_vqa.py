from itertools import combinations

import pytest
import torch

from dowser_pl.metrics import VQAAccuracy
from dowser_pl.metrics.vqa import soft_accuracy


def leave_one_out(num_matches: int, num_references: int) -> float:
    """The definition, spelled out: mean over all subsets of n-1 answers of min(1, matches / 3)."""
    answers = [True] * num_matches + [False] * (num_references - num_matches)
    subsets = list(combinations(answers, num_references - 1))
    return sum(min(1.0, sum(subset) / 3) for subset in subsets) / len(subsets)


@pytest.mark.parametrize("num_references", [10, 12])
def test_equals_the_definition(num_references: int) -> None:
    for num_matches in range(num_references + 1):
        expected = leave_one_out(num_matches, num_references)
        assert soft_accuracy(num_matches, num_references) == pytest.approx(expected, abs=1e-12)


def test_ten_answers_by_hand() -> None:
    assert [soft_accuracy(m, 10) for m in range(6)] == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1])


@pytest.mark.parametrize(
    ("num_matches", "num_references", "expected"),
    [
        (0, 1, 0),
        (1, 1, 1),
        (1, 2, 0.5),
        (2, 2, 1),
        (1, 3, 1 / 3),
        (3, 3, 1),
        (2, 9, 2 / 3),
        (3, 9, 1),
        (9, 9, 1),
    ],
)
def test_fewer_than_ten(num_matches: int, num_references: int, expected: float) -> None:
    assert soft_accuracy(num_matches, num_references) == pytest.approx(expected)


def test_normalises_both_sides() -> None:
    metric = VQAAccuracy()
    metric.update(["Two dogs."], [["2 dogs"] * 2 + ["the two dogs"] + ["cat"] * 7])
    assert metric.compute() == torch.tensor(0.9)


def test_unanimous_references_are_normalised_too() -> None:
    metric = VQAAccuracy()
    metric.update(["cat"], [["The cat."] * 10])
    assert metric.compute() == 1


@pytest.mark.parametrize(("prediction", "right"), [("a", 1), ("A", 1), ("", 0), ("the", 0), ("?", 0)])
def test_an_answer_of_nothing_is_never_right(prediction, right):
    """Articles and marks vanish in normalisation, but "a" may be what a sign says."""
    metric = VQAAccuracy()
    metric.update([prediction], [["a"] * 10])
    assert metric.compute() == right
