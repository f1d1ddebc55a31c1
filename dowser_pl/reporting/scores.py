"""The pieces of a report: scores before and after, counts of entries, seconds."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from dowser_pl.reporting.fields import Fields
from dowser_pl.reporting.trade_off import h_score

Role = Literal["upstream", "downstream"]
ROLES: tuple[Role, ...] = ("downstream", "upstream")


@dataclass(frozen=True)
class BeforeAfter:
    """A score of the base model and of the tuned one; None where there is nothing to average."""

    before: float | None
    after: float | None

    @property
    def change(self) -> float | None:
        """After minus before; negative means forgotten."""
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True)
class TaskScore:
    """One evaluation set: raw metric values (CIDEr up to 10, all others in [0, 1]), higher is better."""

    role: Role
    metric: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """After minus before; negative means forgotten."""
        return self.after - self.before

    @classmethod
    def read(cls, task: Fields) -> "TaskScore":
        """One entry of `tasks` in report.json."""
        role = task.text("role")
        if role not in ROLES:
            raise ValueError(f"{task.where}: the role is {role!r}, expected 'upstream' or 'downstream'.")
        return cls(role, task.text("metric"), task.number("before"), task.number("after"))


@dataclass(frozen=True)
class Counts:
    """Entries of the masked matrices of one kind, and how many of them differ bitwise from the base model."""

    entries: int
    changed: int

    @classmethod
    def read(cls, counts: Fields) -> "Counts":
        """`frozen` or `trainable` in report.json."""
        return cls(counts.count("entries"), counts.count("changed"))


@dataclass(frozen=True)
class Seconds:
    """Wall clock time of each stage of a run."""

    probe: float
    fit: float
    evaluate: float

    @classmethod
    def read(cls, seconds: Fields) -> "Seconds":
        """`seconds` in report.json."""
        return cls(seconds.number("probe"), seconds.number("fit"), seconds.number("evaluate"))

    @property
    def total(self) -> float:
        """All stages together."""
        return self.probe + self.fit + self.evaluate


def mean_score(tasks: Iterable[TaskScore]) -> BeforeAfter:
    """Mean before and mean after over tasks; None for no task."""
    scores = list(tasks)
    if not scores:
        return BeforeAfter(None, None)
    return BeforeAfter(fmean(task.before for task in scores), fmean(task.after for task in scores))


def trade_off(upstream: BeforeAfter, downstream: BeforeAfter) -> BeforeAfter:
    """H-score before and after; None where a role has no task."""
    if upstream.before is None or downstream.before is None:
        return BeforeAfter(None, None)
    if upstream.after is None or downstream.after is None:
        return BeforeAfter(None, None)
    return BeforeAfter(h_score(upstream.before, downstream.before), h_score(upstream.after, downstream.after))


def role_means(scores: Iterable[tuple[Role, float]]) -> dict[str, float]:
    """``upstream_mean`` and ``downstream_mean`` of one evaluation, and ``h_score`` where both roles have a task."""
    by_role: dict[Role, list[float]] = {}
    for role, score in scores:
        by_role.setdefault(role, []).append(score)
    means = {f"{role}_mean": fmean(values) for role, values in by_role.items()}
    if len(means) == len(ROLES):
        means["h_score"] = h_score(means["upstream_mean"], means["downstream_mean"])
    return means
