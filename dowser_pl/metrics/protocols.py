"""Metrics that published protocols score by, where ours is another rule: their numbers are for comparison with papers.

Each takes the words as the protocol's own script does, unforgiving where it is: what a model means but writes otherwise
counts as wrong there, and so it does here. Rules are written anew from the scripts that are named.
"""

import re
import string
from collections.abc import Sequence

from dowser_pl.metrics.answers import AnswerMetric

_UNPUNCTUATED = str.maketrans("", "", string.punctuation)
_THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
_LETTERS = "ABCDE"
_ANLS_LEAST = 0.5
_TOLERANCE = 0.05


class GQAAccuracy(AnswerMetric):
    """GQA as LLaVA hands answers to the official `eval.py`: no full stop at the end, lower case, then equality."""

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if the answer is the one of the file, else 0."""
        return float(prediction.strip().rstrip(".").lower() in references)


class AOKVQAAccuracy(AnswerMetric):
    """Direct answers of A-OKVQA as its `evaluation/eval_predictions.py` counts them, letter by letter."""

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if three people gave the answer, else a third for each who did."""
        return min(1.0, references.count(prediction.strip()) / 3)


class LowerMatch(AnswerMetric):
    """Equality in lower case, without spaces at both ends, as scripts of OCR-VQA, IconQA and ImageNet-R compare."""

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if any reference is matched, else 0."""
        return float(any(prediction.strip().lower() == reference.strip().lower() for reference in references))


class UnpunctuatedMatch(AnswerMetric):
    """Equality without case and without any ASCII punctuation, as lmms-eval compares answers of GQA."""

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if any reference is matched, else 0."""
        answer = prediction.lower().translate(_UNPUNCTUATED)
        return float(any(answer == reference.lower().translate(_UNPUNCTUATED) for reference in references))


class ScienceQA(AnswerMetric):
    """ScienceQA as LLaVA's `eval_science_qa.py` reads the letter; the first reference is the right one.

    It is the whole answer, or its first character with ". " behind it, or what follows the only "The answer is ".
    """

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if the letter that is read is the right one, else 0."""
        text = prediction.strip()
        if text in _LETTERS and len(text) == 1:
            return float(text == references[0])
        if text[:1] and text[0] in _LETTERS and text[1:3] == ". ":
            return float(text[0] == references[0])
        found = _THE_ANSWER_IS.findall(text)
        return float(len(found) == 1 and found[0] == references[0])


class ScienceQAPrefix(AnswerMetric):
    """ScienceQA as lmms-eval reads the letter: the whole answer in any case, or a capital with "." behind it."""

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if the letter that is read is the right one, else 0."""
        text, letter = prediction.strip(), references[0].strip().lower()
        if text.lower() == letter:
            return 1.0
        return float(len(text) >= 2 and text[0].isupper() and text[1] == "." and text[0].lower() == letter)


def edit_distance(one: str, other: str) -> int:
    """Levenshtein distance: the fewest characters inserted, left out or replaced that make one text of the other."""
    before = list(range(len(other) + 1))
    for row, mine in enumerate(one, 1):
        line = [row]
        for column, theirs in enumerate(other, 1):
            line.append(min(before[column] + 1, line[-1] + 1, before[column - 1] + (mine != theirs)))
        before = line
    return before[-1]


class ANLS(AnswerMetric):
    """Average Normalised Levenshtein Similarity. Biten et al., 2019. arXiv:1905.13648 (ST-VQA, DocVQA).

    Of each reference s = 1 - distance / length of the longer text, both in lower case with single spaces; the best
    counts, and nothing below 1/2.
    """

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """The best similarity with any reference, 0 if that is below 1/2."""
        best = max(_similarity(_plain(prediction), _plain(reference)) for reference in references)
        return best if best >= _ANLS_LEAST else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(one: str, other: str) -> float:
    longer = max(len(one), len(other))
    return 1.0 if longer == 0 else 1 - edit_distance(one, other) / longer


class RelaxedAccuracy(AnswerMetric):
    """Relaxed accuracy of ChartQA. Masry et al., 2022. arXiv:2203.10244, section 5.1.

    A number may be off by 5 % of the right one (inclusive), where "12%" is 0.12; anything else, and where the right
    number is 0, is compared without case.
    """

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if any reference is met, else 0."""
        return float(any(_close(prediction.strip(), reference.strip()) for reference in references))


def _close(said: str, right: str) -> bool:
    number, wanted = _number(said), _number(right)
    if number is not None and wanted:
        return abs(number - wanted) / abs(wanted) <= _TOLERANCE  # a product would round other numbers inside
    return said.lower() == right.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
