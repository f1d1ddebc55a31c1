"""BLEU-4, ROUGE-L and METEOR against their definitions, written anew in plain Python."""

import math
import shutil
from collections import Counter

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from dowser_pl.data import TaskFile
from dowser_pl.errors import DowserError
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


def meteor(matched, said, right, chunks):
    """METEOR of words that match themselves alone: alpha 0.85, beta 0.2, gamma 0.6, the numbers of version 1.5."""
    precision, recall = matched / said, matched / right
    return precision * recall / (0.85 * precision + 0.15 * recall) * (1 - 0.6 * (chunks / matched) ** 0.2)


WITH_JAVA = pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java here")
ZEBRAS = [  # and the words matched, said and right, and in how many pieces; what is right as a whole is none
    ("Zebra, giraffe.", ["a lion", "zebra giraffe"], (2, 2, 2, 0)),
    ("zebra giraffe", ["giraffe zebra", "..."], (2, 2, 2, 2)),
    ("zebra giraffe lion", ["zebra tiger giraffe lion"], (3, 3, 4, 2)),
    ("caf\u00e9", ["caf\u00e8"], (0, 1, 1, 0)),
    ("", ["zebra giraffe lion"], (0, 0, 3, 0)),
]


@WITH_JAVA
@pytest.mark.slow
def test_meteor_counts_over_the_whole_set():
    metric = build_metric("meteor")
    for prediction, references, _ in ZEBRAS:
        metric.update([prediction], [references])
    counts = [sum(each) for each in zip(*(row for *_, row in ZEBRAS), strict=True)]
    assert float(metric.compute()) == pytest.approx(meteor(*counts), abs=1e-6)


def test_without_java_it_is_told_when_the_task_is_made(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DowserError, match="meteor: got no program `java` on the PATH.*Fix: install a Java runtime"):
        TaskFile("t", "t.json", metric="meteor")


def test_a_program_that_fails_is_told(monkeypatch, tmp_path):
    (tmp_path / "java").write_text("#!/bin/sh\necho no memory >&2\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    metric = build_metric("meteor")
    metric.update(["a zebra"], [["a zebra"]])
    with pytest.raises(DowserError, match="meteor: its Java program failed: no memory"):
        metric.compute()


@WITH_JAVA
@pytest.mark.slow
def test_captions_score_as_with_the_published_tokenizer():
    captions = [
        ["A man riding a wave on top of a surfboard.", "A surfer's board, isn't it?", "He can't stop; he cannot!"],
        ["Two dogs (brown & white) play with a frisbee.", "dogs at 10:30 a.m. in the U.S.", "Dogs -- in the snow..."],
        ['A "STOP" sign near 5th Ave. & St. John', "a red stop sign/post", "An old-fashioned sign, 3.5 meters high"],
        ["A plate of food with caf\u00e9-style fries", "Food [on a plate]", "Fries"],
    ]
    said = ["a man is surfing on a wave", "Brown and white dogs (two) in the snow.", "A stop sign near 5th Ave.", ""]
    tokenizer = PTBTokenizer()
    right = tokenizer.tokenize({n: [{"caption": each} for each in row] for n, row in enumerate(captions)})
    mine = tokenizer.tokenize({n: [{"caption": each}] for n, each in enumerate(said)})
    for name, scorer in (("cider", Cider()), ("bleu4", Bleu(4)), ("rouge_l", Rouge()), ("meteor", Meteor())):
        expected = scorer.compute_score(right, mine)[0]
        metric = build_metric(name)
        metric.update(said, captions)
        assert float(metric.compute()) == pytest.approx(expected[3] if name == "bleu4" else expected, abs=1e-6), name
