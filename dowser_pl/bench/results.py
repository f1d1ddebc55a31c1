"""The numbers of a bench: what each method reached at its best setting, and how it got there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import correlation, fmean, median, stdev
from typing import Any

import numpy as np

from dowser_pl.bench.cells import Cell, Group
from dowser_pl.bench.grid import Choice, Plan, groups
from dowser_pl.bench.matched import matched
from dowser_pl.bench.paired import Difference, Outcomes, against_first
from dowser_pl.bench.records import Record
from dowser_pl.bench.settings import Entry

__all__ = ["Comparison", "MethodResult", "Point", "Spread", "compare"]


@dataclass(frozen=True)
class Spread:
    """A number that was measured with several seeds, and how far the seeds differ.

    Attributes:
        values: in the order of the seeds.
    """

    values: Sequence[float]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return fmean(self.values)

    @property
    def std(self) -> float | None:
        """The standard deviation over the seeds (n - 1); None for one seed."""
        return stdev(self.values) if len(self.values) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Mean and numbers as plain values, ready for JSON."""
        return {"mean": self.mean, "std": self.std, "per_seed": list(self.values)}


@dataclass(frozen=True)
class Point:
    """One setting on validation data; `record` is None where it failed or was not run."""

    cell: Cell
    record: Record | None
    failure: str | None

    def to_dict(self) -> dict[str, Any]:
        """The point as plain values, ready for JSON."""
        row: dict[str, Any] = {"setting": dict(self.cell.setting)}
        if self.record is None:
            return row | {"failed": self.failure}
        return row | {
            "downstream": self.record.mean("downstream"),
            "upstream": self.record.mean("upstream"),
            "h_score": self.record.h_score,
        }


@dataclass(frozen=True)
class MethodResult:
    """One method in one group.

    Attributes:
        entry: the method.
        choice: its best setting; None while that is open.
        curve: every setting that was tried.
        seeds: those that finished on test data.
        records: of these seeds.
        failures: cell -> last lines of its log.
        costs: of short runs that took turns with those of the other methods; of what merges those of what it merges.
    """

    entry: Entry
    choice: Choice | None
    curve: Sequence[Point]
    seeds: Sequence[int]
    records: Sequence[Record]
    failures: Mapping[str, str]
    costs: Sequence[Record] = ()

    @property
    def begun(self) -> bool:
        """Whether anything has finished, or failed."""
        return bool(self.failures) or any(point.record or point.failure for point in self.curve)

    @property
    def downstream(self) -> Spread:
        """The downstream score over the seeds, of which there must be one."""
        return Spread([record.mean("downstream") for record in self.records])

    @property
    def upstream(self) -> Spread:
        """The upstream score over the seeds, of which there must be one."""
        return Spread([record.mean("upstream") for record in self.records])

    @property
    def h_score(self) -> Spread:
        """The H-score over the seeds, of which there must be one."""
        return Spread([record.h_score for record in self.records])

    @property
    def arithmetic_mean(self) -> Spread:
        """The mean of both scores over the seeds, of which there must be one."""
        return Spread([record.arithmetic_mean for record in self.records])

    @property
    def seconds(self) -> Spread:
        """To get a tuned model, without evaluation."""
        return Spread([record.training_seconds for record in self.records])

    @property
    def step_seconds(self) -> float | None:
        """The duration of training by its steps, the median of runs that took turns; None where nothing was timed."""
        found = [each.seconds["fit"] / each.steps for each in self.costs if each.steps]
        return median(found) if found else None

    @property
    def drops(self) -> dict[str, Spread]:
        """Upstream task -> how much of its score was lost (positive = forgotten), see `TaskScore.lost`."""
        first = self.records[0].tasks
        return {
            name: Spread([record.tasks[name].lost for record in self.records])
            for name, task in first.items()
            if task.role == "upstream"
        }

    @property
    def drift(self) -> Spread | None:
        """KL to the base on rows that it wrote itself; None where that is not known of every seed."""
        known = [record.drift for record in self.records if record.drift is not None]
        return Spread(known) if known and len(known) == len(self.records) else None

    @property
    def peak_memory_bytes(self) -> int | None:
        """The highest of the seeds."""
        return max((record.peak_memory_bytes or 0 for record in self.records), default=0) or None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; what has no result yet is null."""
        content: dict[str, Any] = {
            "chosen": None if self.choice is None else dict(self.choice.setting),
            "at_edge": {} if self.choice is None else self.choice.edges,
            "after": self.entry.after,
            "tuning": [point.to_dict() for point in self.curve],
            "seeds": list(self.seeds),
            "failures": dict(self.failures),
        }
        names = ("downstream", "upstream", "h_score", "arithmetic_mean", "seconds")
        if not self.records:
            others = ("drops", "drift", "step_seconds", "trainable_share", "peak_memory_bytes", "file_bytes", "steps")
            return content | dict.fromkeys((*names, *others))
        last = self.records[-1]
        return (
            content
            | {name: getattr(self, name).to_dict() for name in names}
            | {
                "drops": {task: spread.to_dict() for task, spread in self.drops.items()},
                "drift": None if self.drift is None else self.drift.to_dict(),
                "trainable_share": Spread([record.trainable_share for record in self.records]).mean,
                "step_seconds": self.step_seconds,
                "peak_memory_bytes": self.peak_memory_bytes,
                "file_bytes": last.file_bytes,
                "steps": last.steps,
            }
        )


@dataclass(frozen=True)
class Comparison:
    """The methods of one group, best H-score first, those without a result last.

    Attributes:
        group: world, task and depth.
        methods: in that order.
        differences: name -> how far it is from the first; lacks those whose single answers are not known.
    """

    group: Group
    methods: Sequence[MethodResult]
    differences: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def begun(self) -> bool:
        """Whether anything has finished, or failed."""
        return any(method.begun for method in self.methods)

    @property
    def base(self) -> tuple[float, float] | None:
        """Downstream and upstream of the base model on test data; None before any test."""
        for method in self.methods:
            for record in method.records:
                return record.mean("downstream", "before"), record.mean("upstream", "before")
        return None

    @property
    def foretold(self) -> tuple[float, int] | None:
        """How well drift, which takes no data, orders runs by the upstream score that they lost.

        Returns:
            Spearman's rank correlation over all runs of the group of which both are known, on validation and test data,
            and how many these are; None for fewer than three, or where one of the two is the same in all.
        """
        records = {each.cell: each.record for method in self.methods for each in method.curve}
        found = [*records.values(), *(record for method in self.methods for record in method.records)]
        pairs = [(each.drift, each.upstream_lost) for each in found if each is not None and each.drift is not None]
        if len(pairs) < _LEAST or any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
            return None
        drifts, lost = map(_ranks, zip(*pairs, strict=True))
        return correlation(drifts, lost), len(pairs)

    @property
    def matched(self) -> tuple[float, dict[str, float | None]] | None:
        """Upstream on validation data where methods have learnt equally much; see `dowser_pl.bench.matched`."""
        return matched(
            {
                method.entry.name: [
                    (each.record.mean("downstream"), each.record.mean("upstream"))
                    for each in method.curve
                    if each.record is not None
                ]
                for method in self.methods
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain values, ready for JSON."""
        base = None if self.base is None else dict(zip(("downstream", "upstream"), self.base, strict=True))
        foretold = (
            None if self.foretold is None else dict(zip(("rank_correlation", "runs"), self.foretold, strict=True))
        )
        methods = {
            each.entry.name: each.to_dict() | {"against_first": self._difference(each.entry.name)}
            for each in self.methods
        }
        level = None if self.matched is None else dict(zip(("downstream", "upstream"), self.matched, strict=True))
        return {**vars(self.group), "base": base, "matched": level, "drift_foretells": foretold, "methods": methods}

    def _difference(self, name: str) -> dict[str, Any] | None:
        return vars(self.differences[name]) if name in self.differences else None


_LEAST = 3  # pairs of which a correlation says something


def _ranks(values: Sequence[float]) -> list[float]:
    """Places in rising order, 1 first; equal values share the mean of theirs."""
    order = sorted(values)
    return [order.index(value) + (order.count(value) + 1) / 2 for value in values]


def compare(plan: Plan) -> list[Comparison]:
    """What is known of every group."""
    return [_compare(plan, group) for group in groups(plan.settings)]


def _compare(plan: Plan, group: Group) -> Comparison:
    methods = [_result(plan, group, entry) for entry in plan.entries]
    methods.sort(key=lambda method: -method.h_score.mean if method.records else 1.0)
    outcomes = {each.entry.name: found for each in methods if (found := _outcomes(plan, group, each))}
    whole = methods and methods[0].entry.name in outcomes  # the first of all, not of those that are known
    return Comparison(group, methods, against_first(outcomes) if whole else {})


def _outcomes(plan: Plan, group: Group, method: MethodResult) -> Outcomes | None:
    """Of all seeds; None where a single answer is not known."""
    by_seed = [plan.done.scores(cell) for cell in plan.tests(group, method.entry)]
    known = [scores for scores in by_seed if scores is not None]
    if not known or len(known) < len(plan.settings.seeds):
        return None
    roles = {name: task.role for name, task in method.records[0].tasks.items()}
    of_role = {
        role: {name: np.array([scores[name].values for scores in known]) for name in roles if roles[name] == role}
        for role in ("upstream", "downstream")
    }
    tokens = {
        name: np.array(scores.tokens, np.float64) for name, scores in known[0].items() if scores.tokens is not None
    }
    return Outcomes(**of_role, tokens=tokens) if all(of_role.values()) else None


def _result(plan: Plan, group: Group, entry: Entry) -> MethodResult:
    tuning, tests = plan.tuning(group, entry) or [], plan.tests(group, entry)
    trained = entry.name if entry.merge is None else entry.after
    costs = [cell for cell in plan.costs(group) if cell.method == trained]
    own = [*tuning, *tests, *(costs if entry.merge is None else [])]
    failed = {cell: failure.reason for cell in own if (failure := plan.done.failure(cell))}
    finished = {cell: record for cell in tests if (record := plan.done.record(cell))}
    failures = {cell.text: reason for cell, reason in failed.items()}
    if plan.tuning(group, entry) == []:
        failures[entry.name] = f"no setting of {entry.after} finished, whose models it merges"
    return MethodResult(
        entry=entry,
        choice=plan.choice(group, entry),
        curve=[Point(cell, plan.done.record(cell), failed.get(cell)) for cell in tuning],
        seeds=[cell.seed for cell in finished],
        records=list(finished.values()),
        failures=failures,
        costs=[record for cell in costs if (record := plan.done.record(cell))],
    )
