"""A task as another program measured it: every score that it tells, and single answers where it kept them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from dowser_pl.reporting.answers import Row

__all__ = ["Measured", "Value", "leads_to"]

_HALF_A_SCORE = 5e-5


@dataclass(frozen=True)
class Value:
    """One score of a task, on the scale of the file.

    Attributes:
        score: of all questions.
        standard_error: for want of questions, where the file has it.
        singles: score of every question, in the order of `Measured.rows`; empty where they are not known.
        lower_is_better: whether the file says so.
    """

    score: float
    standard_error: float | None = None
    singles: tuple[float, ...] = ()
    lower_is_better: bool = False


@dataclass(frozen=True)
class Measured:
    """One task of a result file.

    Attributes:
        file: that has it.
        values: metric -> its score; none where answers were only written for a server.
        protocol: how it was asked and scored, as in `TaskScore`, without the metric.
        count: questions; None where the files do not say.
        rows: one for each question, with `id`, `question`, `references`, `prediction`; none where they were not kept.
    """

    file: str
    values: dict[str, Value]
    protocol: dict[str, Any]
    count: int | None
    rows: list[Row] = field(default_factory=list)


def leads_to(singles: Sequence[float], score: float, scale: float = 1.0) -> bool:
    """Whether a score is the mean of single ones that are as many times larger as `scale` says."""
    return len(singles) > 0 and abs(fmean(singles) / scale - score) < _HALF_A_SCORE
