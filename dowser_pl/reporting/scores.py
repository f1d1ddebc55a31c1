"""The pieces of a report: scores before and after and their trade-off as one number, counts of entries, seconds.

And what a budget for forgetting chose among the update ratios of one run.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from dowser_pl.errors import DowserError
from dowser_pl.reporting.fields import Fields


@dataclass(frozen=True)
class BudgetChoice:
    """The ratio that was chosen because so much may be forgotten and no more.

    Attributes:
        max_upstream_drop: upstream mean that may be lost; None = not limited.
        update_ratio: the chosen one.
        kept: whether it keeps the budget; if none does, the smallest measured ratio is taken.
        drops: measured ratio -> upstream mean lost (negative = gained), on data to choose on, not that of the report;
            empty where that is not limited.
        max_drift: KL to the base that may be reached; None = not limited.
        drifts: measured ratio -> KL to the base on rows that it wrote itself; empty where that is not limited.
    """

    max_upstream_drop: float | None
    update_ratio: float
    kept: bool
    drops: dict[float, float] = field(default_factory=dict)
    max_drift: float | None = None
    drifts: dict[float, float] = field(default_factory=dict)

    @classmethod
    def read(cls, budget: Fields) -> "BudgetChoice":
        """Read the field `budget` of report.json."""
        limits = {name: budget.optional(name, budget.number) for name in ("max_upstream_drop", "max_drift")}
        drops, drifts = _by_ratio(budget, "drops", "drop"), _by_ratio(budget, "drifts", "drift")
        ratio, kept = budget.number("update_ratio"), budget.flag("kept")
        return cls(update_ratio=ratio, kept=kept, drops=drops, drifts=drifts, **limits)

    def to_dict(self) -> dict[str, Any]:
        """The choice as plain values, which `read` reads."""
        drops = [{"update_ratio": ratio, "drop": drop} for ratio, drop in self.drops.items()]
        drifts = [{"update_ratio": ratio, "drift": drift} for ratio, drift in self.drifts.items()]
        return {**vars(self), "drops": drops, "drifts": drifts}


def _by_ratio(budget: Fields, key: str, name: str) -> dict[float, float]:
    entries = budget.optional(key, budget.sections) or []
    return {entry.number("update_ratio"): entry.number(name) for entry in entries}


def check_budget(budget: BudgetChoice) -> None:
    """Refuse a choice that no budget can have led to.

    Raises:
        DowserError: the budget is negative or not finite, what was measured or its ratio is not possible, or the chosen
            ratio was not measured.
    """
    limited = {"max_upstream_drop": (budget.max_upstream_drop, budget.drops, "drop")}
    limited |= {"max_drift": (budget.max_drift, budget.drifts, "drift")}
    if all(limit is None for limit, _, _ in limited.values()):
        raise DowserError("The budget limits nothing, expected max_upstream_drop or max_drift.")
    for name, (limit, measured, what) in limited.items():
        if limit is not None:
            _check_limit(name, limit, measured, what, budget.update_ratio)


def _check_limit(name: str, limit: float, measured: dict[float, float], what: str, chosen: float) -> None:
    if not (math.isfinite(limit) and limit >= 0):
        raise DowserError(f"The budget's {name} is {limit}, expected a finite number of at least 0.")
    for ratio, value in measured.items():
        if not (0 <= ratio <= 1 and math.isfinite(value)):
            raise DowserError(
                f"The budget has the {what} {value} at update ratio {ratio}, expected a finite {what} and a ratio in "
                "[0, 1]."
            )
    if chosen not in measured:
        known = ", ".join(map(str, measured)) or "none"
        raise DowserError(f"The budget chose update ratio {chosen}, expected one that was measured: {known}.")


def h_score(upstream: float, downstream: float) -> float:
    """Harmonic mean of the upstream and the downstream score; 0 if either is 0.

    Both scores are means over tasks, higher is better, and on the same scale (accuracies in [0, 1]; CIDEr, where
    a task uses it, raw). High only if both are: a model that learnt nothing and one that forgot everything get 0.

    Raises:
        DowserError: a score is negative, NaN or infinite.
    """
    for name, score in (("upstream", upstream), ("downstream", downstream)):
        if not (math.isfinite(score) and score >= 0):
            raise DowserError(f"h_score: got {name} = {score}, expected a finite score of at least 0.")
    if upstream == 0 or downstream == 0:
        return 0.0
    return 2 / (1 / upstream + 1 / downstream)


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


LOWER_IS_BETTER = frozenset({"perplexity"})
"""Metrics that enter means and the H-score through `comparable`."""


def comparable(metric: str, role: Role, base: float, score: float) -> float:
    """A score on the scale of means and of the H-score: higher is better.

    Every metric as it is, but of a perplexity, which is at least 1 and better the lower it is, its ratio to that of the
    base model. Of an upstream task, on which the base model can lose alone: min(1, base / score), 1 before training,
    1/2 where the perplexity doubled; what falls below the base's counts as nothing gained. Of a downstream task, on
    which it is to learn: max(0, 1 - score / base), 0 before training, 1/2 where the perplexity was halved.

    Args:
        metric: as in `TaskScore`.
        role: of the task.
        base: score of the base model on the same questions.
        score: of the model.
    """
    if metric not in LOWER_IS_BETTER:
        return score
    return min(1.0, base / score) if role == "upstream" else max(0.0, 1 - score / base)


@dataclass(frozen=True)
class TaskScore:
    """One evaluation set: raw metric values, higher is better.

    CIDEr goes up to 10, all others lie in [0, 1], except perplexity: at least 1, and lower is better.

    Attributes:
        role: of the task.
        metric: that answers are scored by.
        before: score of the base model.
        after: score of the tuned model.
        protocol: how the task is asked and scored; empty where an earlier version did not tell.
    """

    role: Role
    metric: str
    before: float
    after: float
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def change(self) -> float:
        """After minus before; negative means forgotten, where lower is better positive."""
        return self.after - self.before

    @property
    def gain(self) -> float:
        """The change with the sign that positive means better."""
        return -self.change if self.metric in LOWER_IS_BETTER else self.change

    @property
    def lost(self) -> float:
        """How much less the score after training counts in means than that before; positive means forgotten."""
        return self.comparable(self.before) - self.comparable(self.after)

    @property
    def title(self) -> str:
        """The metric as tables head it, with what is better where that is not more."""
        return f"{self.metric}, lower is better" if self.metric in LOWER_IS_BETTER else self.metric

    def comparable(self, score: float) -> float:
        """A score of this task on the scale of means; see `comparable`."""
        return comparable(self.metric, self.role, self.before, score)

    @classmethod
    def read(cls, task: Fields) -> "TaskScore":
        """One entry of `tasks` in report.json."""
        role = task.text("role")
        if role not in ROLES:
            raise DowserError(f"{task.where}: the role is {role!r}, expected 'upstream' or 'downstream'.")
        protocol = task.section_or_empty("protocol").value
        return cls(role, task.text("metric"), task.number("before"), task.number("after"), protocol)


@dataclass(frozen=True)
class Questions:
    """How many questions of a task were asked, and what became of the answers.

    Attributes:
        count: that were asked.
        gained: with a higher score after training; None where answers of the base model are not known one by one.
        forgotten: with a lower score, likewise.
        mean_square_change: mean over questions of the squared change of the score, likewise.
        unit: whether the score of every single question lies in [0, 1], as that of CIDEr does not.
    """

    count: int
    gained: int | None = None
    forgotten: int | None = None
    mean_square_change: float | None = None
    unit: bool = True

    @classmethod
    def read(cls, questions: Fields) -> "Questions":
        """One entry of `questions` in report.json."""
        gained, forgotten = (questions.optional(name, questions.count) for name in ("gained", "forgotten"))
        mean_square = questions.optional("mean_square_change", questions.number)
        unit = questions.optional("unit", questions.flag)
        return cls(questions.count("count"), gained, forgotten, mean_square, unit is not False)


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
        """Read the field `seconds` of report.json."""
        return cls(seconds.number("probe"), seconds.number("fit"), seconds.number("evaluate"))

    @property
    def total(self) -> float:
        """The seconds of all stages together."""
        return self.probe + self.fit + self.evaluate


def mean_score(tasks: Iterable[TaskScore]) -> BeforeAfter:
    """Mean before and mean after over tasks, of `comparable` scores; None for no task."""
    scores = list(tasks)
    if not scores:
        return BeforeAfter(None, None)
    before = fmean(task.comparable(task.before) for task in scores)
    return BeforeAfter(before, fmean(task.comparable(task.after) for task in scores))


def trade_off(upstream: BeforeAfter, downstream: BeforeAfter) -> BeforeAfter:
    """H-score before and after; None where a role has no task."""
    if upstream.before is None or downstream.before is None:
        return BeforeAfter(None, None)
    if upstream.after is None or downstream.after is None:
        return BeforeAfter(None, None)
    return BeforeAfter(h_score(upstream.before, downstream.before), h_score(upstream.after, downstream.after))


def role_means(scores: Iterable[tuple[Role, float]]) -> dict[str, float]:
    """`upstream_mean` and `downstream_mean` of one evaluation, and `h_score` where both roles have a task."""
    by_role: dict[Role, list[float]] = {}
    for role, score in scores:
        by_role.setdefault(role, []).append(score)
    means = {f"{role}_mean": fmean(values) for role, values in by_role.items()}
    if len(means) == len(ROLES):
        means["h_score"] = h_score(means["upstream_mean"], means["downstream_mean"])
    return means
