import pytest
import torch

from dowser_pl.metrics import ExactMatch
from dowser_pl.metrics.exact_match import normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The Cat. ", "the cat"),
        ("the\n\tcat", "the cat"),
        ("(3.5)", "3.5"),
        ("-3", "-3"),
        ("50%", "50%"),
        ("don't!", "don't"),
        ('"ja" «nein»', "ja nein"),
        ("Stra\u00dfe", "strasse"),
        ("cafe\u0301", "caf\u00e9"),
        ("\uff1f", "\uff1f"),
        ("...", "..."),
        ("yes .", "yes"),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(("left", "right"), [("?", "!"), ("?", ""), ("3.5", "35"), ("-3", "3"), ("a b", "ab")])
def test_different_answers_stay_different(left: str, right: str) -> None:
    assert normalise(left) != normalise(right)


def test_any_reference_counts() -> None:
    metric = ExactMatch()
    metric.update(["A Dog.", "cat", "red"], [["hound", "a dog"], ["cat"], ["blue"]])
    assert metric.compute() == torch.tensor(2 / 3)


def test_batches_add_up() -> None:
    whole, parts = ExactMatch(), ExactMatch()
    predictions, references = ["a", "b", "x", "d", "e"], [["a"], ["b"], ["c"], ["d"], ["e"]]
    whole.update(predictions, references)
    parts.update(predictions[:4], references[:4])
    parts.update(predictions[4:], references[4:])
    assert parts.compute() == whole.compute() == torch.tensor(0.8)
    parts.reset()
    parts.update(["x"], [["y"]])
    assert parts.compute() == 0
