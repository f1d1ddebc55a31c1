import pytest
import torch

from dowser_pl.metrics import ExactMatch, build_metric, metric_name
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
        ("\uff1f", "?"),
        ("\uff32\uff45\uff44", "red"),
        ("\uff13\uff0e\uff10", "3"),
        ("\uff08\uff13\uff09\uff0c", "3"),
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


@pytest.mark.parametrize(
    ("prediction", "reference", "lenient", "strict"),
    [
        ("B", "B", 1, 1),
        (" b\n", "B", 1, 1),
        ("B.", "B", 1, 0),
        ('"red"', "red", 1, 0),
        ("red, green", "red green", 1, 0),
        ("3", "3.0", 1, 0),
        ("3.0", "3", 1, 0),
        ("-3.00", "-3", 1, 0),
        ("3.5", "3.50", 0, 0),  # a version, a page: not the same words
        ("1.10", "1.1", 0, 0),
        ("v3.0", "v3", 0, 0),
        ("cafe\u0301  au lait", "Caf\u00e9 au lait", 1, 1),
    ],
)
def test_lenient_and_strict(prediction: str, reference: str, lenient: int, strict: int) -> None:
    for name, right in (("exact_match", lenient), ("exact_match_strict", strict)):
        metric = build_metric(name)
        metric.update([prediction], [[reference]])
        assert metric.compute() == right


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("cider", "cider"),
        ({"exact_match": {"strict": True}}, "exact_match_strict"),
        ({"exact_match": {"strict": False}}, "exact_match"),
        ({"exact_match": {}}, "exact_match"),
        ({"exact_match": None}, "exact_match"),
    ],
)
def test_the_name_of_a_metric_with_its_options(given: object, name: str) -> None:
    assert metric_name(given) == name


@pytest.mark.parametrize(
    "given",
    [
        {"exact_match": {"strickt": True}},
        {"vqa": {"strict": True}},
        {"exact_match": {"strict": "no"}},
        {"exact_match": {}, "vqa": {}},
        {"exact_match": True},
        ["exact_match"],
        None,
        {},
    ],
)
def test_options_that_no_metric_has(given: object) -> None:
    with pytest.raises(ValueError, match=r"expected|true or false"):
        metric_name(given)
