"""Exact match: the answer equals one of the references, up to case, spaces and marks at word ends.

Published protocols mostly compare the words as they stand: there "B." is not "B". `StrictMatch` does that.
"""

import re
import unicodedata
from collections.abc import Sequence

from dowser_pl.metrics.answers import AnswerMetric, plain_width

SENTENCE_MARKS = frozenset(".,;:!?'\"`…。、¡¿")
WHOLE_NUMBER = re.compile(r"([-+]?\d+)\.0+")
BRACKETS_AND_QUOTES = frozenset({"Ps", "Pe", "Pi", "Pf"})


def is_mark(character: str) -> bool:
    """True for punctuation of the sentence; `-`, `+`, `%`, `$` belong to the answer."""
    return character in SENTENCE_MARKS or unicodedata.category(character) in BRACKETS_AND_QUOTES


def strip_marks(word: str) -> str:
    """Drop sentence marks from both ends of a word; inside it they stay ("3.5", "don't", "10:30")."""
    start, end = 0, len(word)
    while start < end and is_mark(word[start]):
        start += 1
    while end > start and is_mark(word[end - 1]):
        end -= 1
    return word[start:end]


def normalise(text: str) -> str:
    """Casefold, compose Unicode (NFC), collapse spaces, drop sentence marks at word ends and full width.

    "  The Cat. " becomes "the cat", "(3.5)" becomes "3.5", "-3" stays "-3". A text of nothing but marks is
    kept as it is, so that "?" equals "?" and neither "!" nor the empty answer. A whole number is one with or without
    zeros behind its point, as tables write it: "3.0" becomes "3".
    """
    words = plain_width(unicodedata.normalize("NFC", text)).casefold().split()
    stripped = [word for word in map(strip_marks, words) if word]
    kept = " ".join(stripped or words)
    return number[1] if (number := WHOLE_NUMBER.fullmatch(kept)) else kept


def composed(text: str) -> str:
    """Casefold, compose Unicode (NFC) and collapse spaces; every mark stays."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


class ExactMatch(AnswerMetric):
    """Share of predictions equal to any of their references after `normalise`."""

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if any reference is matched, else 0."""
        answer = normalise(prediction)
        return float(any(answer == normalise(reference) for reference in references))


class StrictMatch(AnswerMetric):
    """Share of predictions equal to any of their references but for case and spaces: `exact_match: {strict: true}`."""

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if any reference is matched, else 0."""
        return float(composed(prediction) in map(composed, references))
