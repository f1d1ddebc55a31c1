"""The numbers of a bench, and its tables: what each method reached at its best setting, and how it got there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from dowser_pl.bench.cells import Cell, Group, setting_text
from dowser_pl.bench.grid import Choice, Plan, groups
from dowser_pl.bench.records import Record
from dowser_pl.bench.settings import Entry, Settings
from dowser_pl.reporting.scores import h_score
from dowser_pl.reporting.table import NOTHING, bytes_text, markdown_grid, score_text, seconds_text

__all__ = ["Comparison", "MethodResult", "Point", "Spread", "compare", "page", "spread_text"]


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
    """

    entry: Entry
    choice: Choice | None
    curve: Sequence[Point]
    seeds: Sequence[int]
    records: Sequence[Record]
    failures: Mapping[str, str]

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
    def drops(self) -> dict[str, Spread]:
        """Upstream task -> how much of its score was lost (positive = forgotten)."""
        first = self.records[0].tasks
        return {
            name: Spread([record.tasks[name].before - record.tasks[name].after for record in self.records])
            for name, task in first.items()
            if task.role == "upstream"
        }

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
            others = ("drops", "trainable_share", "peak_memory_bytes", "file_bytes", "steps")
            return content | dict.fromkeys((*names, *others))
        last = self.records[-1]
        return (
            content
            | {name: getattr(self, name).to_dict() for name in names}
            | {
                "drops": {task: spread.to_dict() for task, spread in self.drops.items()},
                "trainable_share": Spread([record.trainable_share for record in self.records]).mean,
                "peak_memory_bytes": self.peak_memory_bytes,
                "file_bytes": last.file_bytes,
                "steps": last.steps,
            }
        )


@dataclass(frozen=True)
class Comparison:
    """The methods of one group, best H-score first, those without a result last."""

    group: Group
    methods: Sequence[MethodResult]

    @property
    def base(self) -> tuple[float, float] | None:
        """Downstream and upstream of the base model on test data; None before any test."""
        for method in self.methods:
            for record in method.records:
                return record.mean("downstream", "before"), record.mean("upstream", "before")
        return None

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain values, ready for JSON."""
        base = None if self.base is None else dict(zip(("downstream", "upstream"), self.base, strict=True))
        return {**vars(self.group), "base": base, "methods": {each.entry.name: each.to_dict() for each in self.methods}}


def compare(plan: Plan) -> list[Comparison]:
    """What is known of every group."""
    return [_compare(plan, group) for group in groups(plan.settings)]


def _compare(plan: Plan, group: Group) -> Comparison:
    methods = [_result(plan, group, entry) for entry in plan.entries]
    methods.sort(key=lambda method: -method.h_score.mean if method.records else 1.0)
    return Comparison(group, methods)


def _result(plan: Plan, group: Group, entry: Entry) -> MethodResult:
    tuning, tests = plan.tuning(group, entry) or [], plan.tests(group, entry)
    failed = {cell: failure.reason for cell in [*tuning, *tests] if (failure := plan.done.failure(cell))}
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
    )


HEADER = (
    "method",
    "setting",
    "downstream",
    "upstream",
    "H",
    "mean",
    "trainable",
    "training",
    "peak memory",
    "file",
)
EDGE_MARK = "\u2020"
NOTES = (
    "Mean ± standard deviation over seeds on the test split; every setting was chosen on the validation split, by the "
    "H-score, the harmonic mean of downstream and upstream; mean is the arithmetic one. Training is without "
    "evaluation; of what is merged after training it holds the training as well. Trainable: share of the tuned "
    "matrices' entries that may move, or, after a merge, that differ from the base. File: the smallest written that "
    "gives the tuned model. The deviation is that of training seeds; all seeds answer the same questions, so a mean p "
    "over n of them is uncertain by about sqrt(p (1 - p) / n) more. Methods that decide after training tried their own "
    "option at two learning rates of the runs they merge."
)


def page(settings: Settings, comparisons: Sequence[Comparison], pictures: Sequence[str]) -> str:
    """The contents of bench.md, the report of a bench.

    Args:
        settings: of the bench.
        comparisons: one for each group.
        pictures: file names beside it.
    """
    parts = [f"# {settings.folder.name}", NOTES]
    for comparison in comparisons:
        parts += [f"## {comparison.group.text}", *_sections(settings, comparison)]
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def spread_text(spread: Spread, of_score: bool = True) -> str:
    """Such as `0.820 ± .010`; the mean alone for one seed."""
    mean = f"{spread.mean:.3f}" if of_score else seconds_text(spread.mean)
    if spread.std is None or not of_score:
        return mean
    return f"{mean} ± {f'{spread.std:.3f}'.lstrip('0')}"


def _sections(settings: Settings, comparison: Comparison) -> list[str]:
    methods = comparison.methods
    rows = [_row(settings, method) for method in methods]
    if comparison.base is not None:
        downstream, upstream = comparison.base
        scores = (downstream, upstream, h_score(upstream, downstream), (downstream + upstream) / 2)
        rows.append(("base model", "", *map(score_text, scores), "", "", "", ""))
    sections = [markdown_grid(HEADER, rows, "ll" + "r" * 8)]
    if any(method.choice is not None and method.choice.edges for method in methods):
        sections.append(f"{EDGE_MARK} at the edge of what was tried: a better setting may lie outside.")
    sections += _failures(methods) + _drops(methods)
    sections += ["What was tried, on the validation split:", _tried(methods)]
    return sections


def _row(settings: Settings, method: MethodResult) -> tuple[str, ...]:
    if method.choice is None:
        state = "failed" if method.failures else "not finished"
        return (method.entry.name, state, *[NOTHING] * 8)
    edges = method.choice.edges
    setting = " ".join(f"{name} {value:g}{EDGE_MARK if name in edges else ''}" for name, value in method.choice.setting)
    missing = len(settings.seeds) - len(method.seeds)
    if missing:
        setting += f" ({len(method.seeds)} of {len(settings.seeds)} seeds)"
    if not method.records:
        return (method.entry.name, setting, *[NOTHING] * 8)
    content = method.to_dict()
    return (
        method.entry.name,
        setting,
        spread_text(method.downstream),
        spread_text(method.upstream),
        spread_text(method.h_score),
        spread_text(method.arithmetic_mean),
        f"{100 * content['trainable_share']:.1f} %",
        spread_text(method.seconds, of_score=False),
        bytes_text(method.peak_memory_bytes),
        bytes_text(content["file_bytes"]),
    )


def _failures(methods: Sequence[MethodResult]) -> list[str]:
    lines = [
        f"- {cell}: {reason.splitlines()[-1] if reason else ''}"
        for method in methods
        for cell, reason in method.failures.items()
    ]
    return ["Failed (run the bench again with `--retry`):", "\n".join(lines)] if lines else []


def _drops(methods: Sequence[MethodResult]) -> list[str]:
    shown = [method for method in methods if method.records]
    if not shown:
        return []
    tasks = list(shown[0].drops)
    rows = [(each.entry.name, *(_change(each.drops[task].mean) for task in tasks)) for each in shown]
    grid = markdown_grid(("lost of", *tasks), rows, "l" + "r" * len(tasks))
    return ["What was lost of every upstream task (negative: gained), mean over seeds:", grid]


def _change(lost: float) -> str:
    return f"{lost:.3f}" if abs(lost) >= 0.0005 else "0.000"


def _tried(methods: Sequence[MethodResult]) -> str:
    rows = []
    for method in methods:
        for point in method.curve:
            chosen = method.choice is not None and method.choice.setting == point.cell.setting
            record = point.record
            scores = (record.mean("downstream"), record.mean("upstream"), record.h_score) if record else (None,) * 3
            state = "chosen" if chosen else "" if record else "failed" if point.failure else "not finished"
            rows.append((method.entry.name, setting_text(point.cell.setting), *map(score_text, scores), state))
    return markdown_grid(("method", "setting", "downstream", "upstream", "H", ""), rows, "llrrrl")
