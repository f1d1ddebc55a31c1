"""BLEU-4 and ROUGE-L against their definitions, written anew in plain Python."""

import math
from collections import Counter

import pytest

from dowser_pl.metrics import build_metric

ROWS = [
    ("A man rides a horse on the beach.", ["A man is riding a horse on the beach.", "Someone on a horse at the sea."]),
    ("Two dogs play with a red ball in the park", ["Two dogs play with a red ball.", "Dogs in a green park at noon"]),
    ("a plate", ["A plate of food sits on the table."]),
]


def words(text: str) -> list[str]:
    return text.lower().replace(".", "").split()


def grams(text: list[str], size: int) -> Counter:
    return Counter(tuple(text[start : start + size]) for start in range(len(text) - size + 1))


def bleu4(rows) -> float:
    said = sum(len(words(prediction)) for prediction, _ in rows)
    closest = [min((abs(len(words(c)) - len(words(p))), len(words(c))) for c in captions)[1] for p, captions in rows]
    precision = 0.0
    for size in (1, 2, 3, 4):
        matched = total = 0
        for prediction, captions in rows:
            mine = grams(words(prediction), size)
            most = {gram: max(grams(words(c), size)[gram] for c in captions) for gram in mine}
            matched += sum(min(count, most[gram]) for gram, count in mine.items())
            total += sum(mine.values())
        precision += math.log(matched / total) / 4
    return math.exp(precision) * min(1.0, math.exp(1 - sum(closest) / said))


def longest(one: list[str], other: list[str]) -> int:
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + longest(one[1:], other[1:])
    return max(longest(one[1:], other), longest(one, other[1:]))


def rouge_l(rows) -> float:
    scores = []
    for prediction, captions in rows:
        lengths = [(longest(words(prediction), words(c)), len(words(c))) for c in captions]
        precision = max(common / len(words(prediction)) for common, _ in lengths)
        recall = max(common / length for common, length in lengths)
        scores.append((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision))
    return sum(scores) / len(scores)


@pytest.mark.parametrize(("name", "expected"), [("bleu4", bleu4(ROWS)), ("rouge_l", rouge_l(ROWS))])
def test_the_definition(name, expected):
    metric = build_metric(name)
    for prediction, captions in ROWS:  # in any batches
        metric.update([prediction], [captions])
    assert 0.1 < expected < 0.9
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", ["bleu4", "rouge_l"])
def test_nothing_to_score(name):
    with pytest.raises(ValueError, match="no row was scored"):
        build_metric(name).compute()
    with pytest.raises(ValueError, match="expected captions with words"):
        build_metric(name).update(["a"], [["..."]])
