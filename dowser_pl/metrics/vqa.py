"""VQA soft accuracy: an answer counts fully when three of the human annotators gave it.

VQA: Visual Question Answering. Agrawal et al., 2015. arXiv:1505.00468, https://visualqa.org/evaluation.html.

Where this differs from the published script: references are always normalised (that script leaves them raw
when all agree, so that "The cat." ten times would match nobody), rows with fewer than ten answers have a rule of their
own, below, and a text of which normalisation leaves nothing ("a", "The") is compared as it is: there an answer of
nothing at all would be right.

The answer normalisation is that of the challenge on EvalAI, written from its published rules. That form (used for
TextVQA, arXiv:1904.08920, and by LLaVA) lower-cases first and adds rules 2 and 3. In this order:

1. lower case;
2. `,` and `?` vanish;
3. a possessive is set apart: "dog's" becomes "dog 's";
4. every other mark of `MARKS` vanishes if the text has it next to a space, and becomes a space if it only
   joins words ("red/blue" becomes "red blue");
5. a full stop vanishes unless a digit follows ("3.5" and ".5" stay);
6. word by word: number words up to ten (and "none") become digits, articles vanish, and a contraction that
   has lost one apostrophe gets it back ("dont" becomes "don't").
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from dowser_pl.metrics.answers import AnswerMetric

MARKS = ';/[]"{}()=+\\_-><@`!'
FULL_STOP = re.compile(r"\.(?!\d)")
ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(NUMBERS)}

PEOPLE = ("he", "somebody", "someone", "who")
VERBS = ("ai", "are", "ca", "did", "do", "does", "had", "has", "have", "is", "was", "were", "wo")
MODALS = ("could", "might", "must", "need", "ought", "sha", "should", "would")
CONTRACTED = {  # ending: what stands before it; left out where the misspelling is a word ("shed", "were")
    "n't": (*VERBS, *MODALS),
    "n't've": ("could", "had", "might", "should", "would"),
    "'ve": ("could", "might", "must", "not", "should", "they", "we", "what", "where", "who", "would", "you"),
    "'d": (*PEOPLE, "how", "it", "something", "there", "they", "where", "you"),
    "'d've": (*PEOPLE, "it", "she", "something", "there", "they", "we", "y'all", "you"),
    "'s": (*PEOPLE, "how", "that", "there", "what", "when", "where", "why"),
    "'ll": ("how", "it", "somebody", "someone", "something", "they", "what", "who", "why", "y'all", "you"),
    "'re": ("there", "they", "what", "why", "you"),
    "": ("ma'am", "o'clock", "'ow's'at", "'twas", "y'all"),
}


def lacking_one_apostrophe(word: str) -> list[str]:
    """The misspellings of a contraction that the rules repair: each of its apostrophes left out once."""
    return [word[:i] + word[i + 1 :] for i, character in enumerate(word) if character == "'"]


REPAIRED = {
    broken: start + ending
    for ending, starts in CONTRACTED.items()
    for start in starts
    for broken in lacking_one_apostrophe(start + ending)
}


def without_marks(text: str) -> str:
    """Rules 4 and 5; whether a mark stands next to a space is decided before any mark is touched."""
    kept = text
    for mark in MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if beside_space else " ")
    return FULL_STOP.sub("", kept)


@lru_cache(maxsize=2**16)  # people give the same answers again and again
def normalise(text: str) -> str:
    """The text as the VQA evaluation compares it; may be empty."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = re.sub(r"[\n\t]", " ", text).strip()
    words = (DIGITS.get(word, word) for word in without_marks(text).split())
    return " ".join(REPAIRED.get(word, word) for word in words if word not in ARTICLES)


NUM_ANNOTATORS = 10
ENOUGH = 3


def soft_accuracy(num_matches: int, num_references: int) -> float:
    """Credit in [0, 1] for an answer that `num_matches` of `num_references` people gave.

    With ten or more: the mean over leave-one-out subsets of min(1, matches in the subset / 3), that is
    0, 0.3, 0.6, 0.9, 1 for 0, 1, 2, 3, 4 matches of ten.
    With fewer: min(1, matches / min(3, references)), so that a unanimous answer always counts fully and one
    reference means exact match. (Leaving one out of one reference would score everything 0.)
    """
    if num_references < NUM_ANNOTATORS:
        return min(1.0, num_matches / min(ENOUGH, num_references))
    missed = num_references - num_matches
    left_out_matched = num_matches * min(ENOUGH, num_matches - 1)
    left_out_missed = missed * min(ENOUGH, num_matches)
    return (left_out_matched + left_out_missed) / (ENOUGH * num_references)


class VQAAccuracy(AnswerMetric):
    """Mean soft accuracy; references are what each annotator said, with repeats.

    For a list of *alternative* right answers use `exact_match`: here one match among three different
    references earns a third.
    """

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """Soft accuracy of one answer after EvalAI normalisation on both sides."""
        answer = _words(prediction)
        num_matches = sum(answer == _words(reference) for reference in references)
        return soft_accuracy(num_matches, len(references))


def _words(text: str) -> str:
    return normalise(text) or text.strip().lower()
