"""What one run learnt and what it forgot: the contents of report.json."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

from dowser_pl.errors import DowserError
from dowser_pl.reporting.curve import CurveMeans, CurvePoint, check_curve, curve_entries, curve_knee, curve_means
from dowser_pl.reporting.drift import ReportedDrift
from dowser_pl.reporting.fields import Fields
from dowser_pl.reporting.intervals import Interval, change_interval, mean_interval, score_interval
from dowser_pl.reporting.kept import KeptModel
from dowser_pl.reporting.scores import (
    BeforeAfter,
    BudgetChoice,
    Counts,
    Questions,
    Role,
    Seconds,
    TaskScore,
    check_budget,
    mean_score,
    trade_off,
)


@dataclass(frozen=True)
class Report:
    """The report of one run.

    Attributes:
        method: class name of the method ("ModelDowser").
        update_ratio: trainable fraction of each matrix; None for a method that has none.
        seed: seed of the run.
        tasks: task name to scores, in the order of the validation loaders.
        frozen: entries the mask holds fixed; `changed` is 0 after a correct run.
        trainable: entries the mask lets move.
        seconds: wall clock time of each stage.
        peak_memory_bytes: of the accelerator, else of the process; None if unknown.
        versions: package name to version.
        learning_rate: peak learning rate of the run.
        steps: optimizer steps taken.
        model: hub id or folder of the base model.
        run: name of the run, as its folder.
        diagnostics: further numbers by name, such as the mask's overlap with the magnitude mask.
        update: how the mask was kept, "compact" or "dense"; None if unknown.
        frozen_digest: content hash of all frozen entries "before" and "after" training; equal after a correct run.
        curve: rising in ratio, from 0 (the base model) to the trained ratio; empty where it was not measured.
        budget: what a budget chose; the scores "after" are then those at the chosen ratio.
        questions: task name to how many questions were asked, gained and forgotten; empty where that is not known.
        drift: from the base, on rows that it wrote itself; None where that was not measured.
        kept: which validated model this is, where one was chosen; None = the last.
    """

    method: str
    update_ratio: float | None
    seed: int
    tasks: dict[str, TaskScore]
    frozen: Counts
    trainable: Counts
    seconds: Seconds
    peak_memory_bytes: int | None
    versions: dict[str, str]
    learning_rate: float | None = None
    steps: int | None = None
    model: str | None = None
    run: str | None = None
    diagnostics: dict[str, float] = field(default_factory=dict)
    update: str | None = None
    frozen_digest: dict[str, str] = field(default_factory=dict)
    curve: list[CurvePoint] = field(default_factory=list)
    budget: BudgetChoice | None = None
    questions: dict[str, Questions] = field(default_factory=dict)
    drift: ReportedDrift | None = None
    kept: KeptModel | None = None

    def __post_init__(self) -> None:
        for name, task in self.tasks.items():
            for moment, score in (("before", task.before), ("after", task.after)):
                if not (math.isfinite(score) and score >= 0):
                    raise DowserError(
                        f"The {task.metric} of task {name!r} {moment} training is {score}, "
                        "expected a finite score of at least 0."
                    )
        check_curve(self.curve, self.tasks)
        if self.budget is not None:
            check_budget(self.budget)
        if odd := sorted(set(self.questions) - set(self.tasks)):
            raise DowserError(f"The report has questions of {odd[0]!r}, expected a task of: {', '.join(self.tasks)}.")

    def of_role(self, role: Role) -> dict[str, TaskScore]:
        """The tasks of one role, in order."""
        return {name: task for name, task in self.tasks.items() if task.role == role}

    @property
    def upstream(self) -> BeforeAfter:
        """Mean over upstream tasks: what the base model could do already."""
        return mean_score(self.of_role("upstream").values())

    @property
    def downstream(self) -> BeforeAfter:
        """Mean over downstream tasks: what was to be learnt."""
        return mean_score(self.of_role("downstream").values())

    def interval(self, name: str, moment: str) -> Interval | None:
        """95 % interval of a task's score "before" or "after", or of its "change"; None where it cannot be told."""
        asked, task = self.questions.get(name), self.tasks[name]
        if asked is None:
            return None
        wide = not asked.unit or max(task.before, task.after) > 1
        if moment != "change":
            return None if wide else score_interval(getattr(task, moment), asked.count)
        if asked.mean_square_change is None:
            return None
        return change_interval(task.change, asked.mean_square_change, asked.count, wide)

    def role_interval(self, role: Role, moment: str) -> Interval | None:
        """The same of the mean over the tasks of a role; None where it cannot be told of one of them."""
        tasks = self.of_role(role)
        estimates = [getattr(task, moment) for task in tasks.values()]
        return mean_interval(estimates, [self.interval(name, moment) for name in tasks])

    @property
    def h_score(self) -> BeforeAfter:
        """Harmonic mean of upstream and downstream; None where a role has no task."""
        return trade_off(self.upstream, self.downstream)

    @property
    def curve_means(self) -> list[CurveMeans]:
        """Means over the tasks of each role, at every ratio of the curve."""
        return curve_means(self.curve, self.tasks)

    @property
    def knee(self) -> float | None:
        """The update ratio where the curve bends; None where it does not, or was not measured."""
        return curve_knee(self.curve_means)

    def scores(self) -> dict[str, Any]:
        """The scores of every task and their means, as plain Python values."""
        return {
            "tasks": {name: dict(vars(task)) for name, task in self.tasks.items()},
            "upstream": dict(vars(self.upstream)),
            "downstream": dict(vars(self.downstream)),
            "h_score": dict(vars(self.h_score)),
        }

    def to_dict(self) -> dict[str, Any]:
        """The layout of report.json in plain Python values."""
        return {
            "method": self.method,
            "update_ratio": self.update_ratio,
            "seed": self.seed,
            **self.scores(),
            "frozen": dict(vars(self.frozen)),
            "trainable": dict(vars(self.trainable)),
            "seconds": dict(vars(self.seconds)),
            "peak_memory_bytes": self.peak_memory_bytes,
            "versions": dict(self.versions),
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "model": self.model,
            "run": self.run,
            "diagnostics": dict(self.diagnostics),
            "update": self.update,
            "frozen_digest": dict(self.frozen_digest),
            "curve": curve_entries(self.curve, self.curve_means),
            "knee": self.knee,
            "budget": None if self.budget is None else self.budget.to_dict(),
            "questions": {name: self._questions_entry(name) for name in self.questions},
            "drift": None if self.drift is None else self.drift.to_dict(),
            "kept": None if self.kept is None else self.kept.to_dict(),
        }

    def _questions_entry(self, name: str) -> dict[str, Any]:
        """Counts, and 95 % intervals as lists for readers of the file; these are computed again when it is read."""
        intervals = {moment: self.interval(name, moment) for moment in ("before", "after", "change")}
        ends = {f"{moment}_interval": None if each is None else list(each) for moment, each in intervals.items()}
        return {**vars(self.questions[name]), **ends}

    def to_json(self) -> str:
        """The report as the text of report.json."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "report.json") -> "Report":
        """Read what `to_json` wrote. Means are computed again from the tasks; unknown fields are ignored.

        Raises:
            DowserError: not JSON, or a field missing, of the wrong kind or impossible; it names `source` and the field.
        """
        try:
            return cls.read(Fields.parse(text, source))
        except ValueError as error:
            if str(error).startswith(source):
                raise
            raise DowserError(f"{source}: {error}") from error

    @classmethod
    def read(cls, fields: Fields) -> "Report":
        """Read the fields of report.json; those that older versions did not write may be missing."""
        tasks, versions = fields.section("tasks"), fields.section("versions")
        diagnostics, digest = (fields.section_or_empty(name) for name in ("diagnostics", "frozen_digest"))
        questions = fields.section_or_empty("questions")
        return cls(
            method=fields.text("method"),
            update_ratio=fields.nullable("update_ratio", fields.number),
            seed=fields.count("seed"),
            tasks={name: TaskScore.read(tasks.section(name)) for name in tasks.value},
            frozen=Counts.read(fields.section("frozen")),
            trainable=Counts.read(fields.section("trainable")),
            seconds=Seconds.read(fields.section("seconds")),
            peak_memory_bytes=fields.nullable("peak_memory_bytes", fields.count),
            versions={name: versions.text(name) for name in versions.value},
            learning_rate=fields.optional("learning_rate", fields.number),
            steps=fields.optional("steps", fields.count),
            model=fields.optional("model", fields.text),
            run=fields.optional("run", fields.text),
            diagnostics={name: diagnostics.number(name) for name in diagnostics.value},
            update=fields.optional("update", fields.text),
            frozen_digest={moment: digest.text(moment) for moment in digest.value},
            curve=[CurvePoint.read(point) for point in fields.optional("curve", fields.sections) or []],
            budget=fields.optional("budget", lambda key: BudgetChoice.read(fields.section(key))),
            questions={name: Questions.read(questions.section(name)) for name in questions.value},
            drift=fields.optional("drift", lambda key: ReportedDrift.read(fields.section(key))),
            kept=fields.optional("kept", lambda key: KeptModel.read(fields.section(key))),
        )
