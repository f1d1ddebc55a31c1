"""VQA soft accuracy: an answer counts fully when three of the human annotators gave it.

VQA: Visual Question Answering. Agrawal et al., 2015. arXiv:1505.00468, https://visualqa.org/evaluation.html.

Where this differs from the published script: references are always normalised (that script leaves them raw
when all agree, so that "The cat." ten times would match nobody), rows with fewer than ten answers have a rule of their
own, below, and a text of which normalisation leaves nothing ("a", "The") is compared as it is: there an answer of
nothing at all would be right.
"""

from collections.abc import Sequence

from dowser_pl.metrics.answers import AnswerMetric
from dowser_pl.metrics.evalai import normalise

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
