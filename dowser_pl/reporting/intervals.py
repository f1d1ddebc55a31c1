"""How uncertain scores are for want of questions: intervals that hold the true value in 95 of 100 evaluation sets.

They say what other questions of the same kind would change, and nothing of other seeds of training.

- A score: Probable inference, the law of succession, and statistical inference. Wilson, 1927. Journal of the American
  Statistical Association 22. It is meant for answers that are right or wrong. Where an answer may be half right, scores
  scatter less around the same mean, and the interval is wider than need be.
- A change, of the same questions before and after: Simple improved confidence intervals for comparing matched
  proportions. Agresti and Min, 2005. Statistics in Medicine 24. Two questions are added to those asked: half of one
  gained, half of one forgotten, one unchanged. So the interval is not empty where nothing, or everything, changed.
  Here the differences need not be whole.
- A mean over tasks, from the intervals of its tasks: Construction of confidence limits about effect measures. Zou and
  Donner, 2008. Statistics in Medicine 27. Tasks are taken to ask different questions.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

Z = 1.959964
"""Standard deviations on both sides of the mean that hold 95 % of a normal distribution."""


class Interval(NamedTuple):
    """The ends, low <= high, on the scale of the score."""

    low: float
    high: float


def score_interval(score: float, num_questions: int) -> Interval | None:
    """Wilson's, of a mean of scores in [0, 1]; None for a score above 1 (CIDEr), or no question."""
    if score > 1 or num_questions < 1:
        return None
    spread = Z**2 / num_questions
    centre = (score + spread / 2) / (1 + spread)
    half = math.sqrt(score * (1 - score) * spread + spread**2 / 4) / (1 + spread)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def change_interval(change: float, mean_square: float, num_questions: int, wide: bool = False) -> Interval | None:
    """Agresti and Min's, of the mean of paired differences.

    Args:
        change: mean of after - before over the questions.
        mean_square: mean of its square.
        num_questions: that were asked, before and after.
        wide: whether questions score above 1 (CIDEr): then nothing is added, as half a question says nothing there.

    Returns:
        None without a question, or, if `wide`, with one alone.
    """
    added = 0 if wide else 2
    if num_questions < 1 + wide:
        return None
    count = num_questions + added
    mean = change * num_questions / count
    variance = max(0.0, (mean_square * num_questions + added / 2) / count - mean**2)
    half = Z * math.sqrt(variance / count)
    if wide:
        return Interval(mean - half, mean + half)
    return Interval(max(-1.0, min(mean - half, change)), min(1.0, max(mean + half, change)))


def mean_interval(estimates: Sequence[float], intervals: Sequence[Interval | None]) -> Interval | None:
    """Zou and Donner's, of the mean of independent estimates; None if one has no interval, or there is none."""
    known = [interval for interval in intervals if interval is not None]
    if not known or len(known) < len(intervals):
        return None
    number = len(estimates)
    mean = sum(estimates) / number
    below = math.hypot(*(value - each.low for value, each in zip(estimates, known, strict=True))) / number
    above = math.hypot(*(each.high - value for value, each in zip(estimates, known, strict=True))) / number
    return Interval(mean - below, mean + above)
