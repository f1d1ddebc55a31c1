"""Scores of any models on the same tasks, without training: the contents of evaluation.json.

The first model is what the others are compared with. Each other one is to it as a tuned model to its base, so that
reports of training and evaluations can stand side by side.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import stdev
from typing import Any

from dowser_pl.errors import DowserError
from dowser_pl.reporting.answers import Row, confirmed, counted, with_answers
from dowser_pl.reporting.fields import Fields
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.scores import ROLES, Counts, Questions, Role, Seconds, TaskScore

__all__ = ["EVALUATION_NAME", "Answered", "Asked", "Difference", "Evaluation", "Scored", "paired_rows"]

EVALUATION_NAME = "evaluation.json"


@dataclass(frozen=True)
class Asked:
    """A task, as in `TaskScore`."""

    role: Role
    metric: str
    protocol: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, task: Fields) -> "Asked":
        """One entry of `tasks` in evaluation.json."""
        role = task.text("role")
        if role not in ROLES:
            raise DowserError(f"{task.where}: the role is {role!r}, expected 'upstream' or 'downstream'.")
        return cls(role, task.text("metric"), task.section_or_empty("protocol").value)


@dataclass(frozen=True)
class Scored:
    """What one model scored on a task.

    Attributes:
        score: of all questions.
        count: how many there are; None where another program measured it and does not say.
        standard_error: of the score, for want of questions: s / sqrt(n) with s the standard deviation of the scores of
            single questions; None where the score is not their mean, or there is one alone.
        seconds: that it took.
    """

    score: float
    count: int | None
    standard_error: float | None
    seconds: float

    @classmethod
    def read(cls, scored: Fields) -> "Scored":
        """One entry of a model's `tasks` in evaluation.json."""
        error = scored.optional("standard_error", scored.number)
        return cls(scored.number("score"), scored.nullable("count", scored.count), error, scored.number("seconds"))


@dataclass(frozen=True)
class Difference:
    """How much more a model scores than the first, on the same questions.

    Attributes:
        value: its score less that of the first; of means on their scale, see `comparable`.
        low: end of the 95 % interval.
        high: the other end.
        p: two-sided.
    """

    value: float
    low: float
    high: float
    p: float

    @classmethod
    def read(cls, difference: Fields) -> "Difference":
        """One entry of `differences` in evaluation.json."""
        return cls(*(difference.number(name) for name in ("value", "low", "high", "p")))


@dataclass(frozen=True)
class Evaluation:
    """Scores of models on tasks.

    Attributes:
        tasks: name -> how it is asked, in the order of the evaluation.
        models: name -> task -> what it scored; the first is what all others are compared with.
        differences: name of another model -> task, or "upstream mean" and "downstream mean" -> how far it is from the
            first; what cannot be told by questions is left out.
        questions: name of another model -> task -> how many questions it gained and lost, as in `Report`.
        versions: package name to version.
    """

    tasks: dict[str, Asked]
    models: dict[str, dict[str, Scored]]
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict)
    questions: dict[str, dict[str, Questions]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Mapping[str, Mapping[str, "Answered"]]) -> "Evaluation":
        """What models scored on the same tasks, compared by nothing yet.

        Args:
            models: name -> task -> its answers; all of the same tasks, asked alike.
        """
        asked = {task: each.asked for task, each in next(iter(models.values())).items()}
        return cls(
            asked, {name: {task: each.scored() for task, each in found.items()} for name, found in models.items()}
        )

    @property
    def first(self) -> str:
        """The model that the others are compared with."""
        return next(iter(self.models))

    def report(self, name: str, base: "Evaluation | None" = None) -> Report:
        """A model as what became of the first one, or of the first of another evaluation of the same tasks.

        Raises:
            DowserError: the other one has not asked a task of this one.
        """
        owner = self if base is None else base
        before, after = owner.models[owner.first], self.models[name]
        if missing := [task for task in self.tasks if task not in before]:
            raise DowserError(f"{owner.first} was not asked task {missing[0]!r}, which {name} was: evaluate both on it")
        return Report(
            method="evaluate",
            update_ratio=None,
            seed=0,
            tasks={
                task: TaskScore(asked.role, asked.metric, before[task].score, after[task].score, asked.protocol)
                for task, asked in self.tasks.items()
            },
            frozen=Counts(0, 0),
            trainable=Counts(0, 0),
            seconds=Seconds(0.0, 0.0, sum(each.seconds for each in after.values())),
            peak_memory_bytes=None,
            versions=self.versions,
            model=owner.first,
            run=name,
            questions=self.questions.get(name, {}) if owner is self else {},
        )

    def reports(self) -> list[Report]:
        """Every model but the first, which is "before" in all of them; of one alone, that one unchanged."""
        others = [name for name in self.models if name != self.first]
        return [self.report(name) for name in others or [self.first]]

    def to_dict(self) -> dict[str, Any]:
        """The layout of evaluation.json in plain values."""
        return {
            "tasks": {name: dict(vars(task)) for name, task in self.tasks.items()},
            "models": [
                {"name": name, "tasks": {task: dict(vars(each)) for task, each in scores.items()}}
                | {"differences": {row: dict(vars(each)) for row, each in self.differences.get(name, {}).items()}}
                | {"questions": {task: dict(vars(each)) for task, each in self.questions.get(name, {}).items()}}
                for name, scores in self.models.items()
            ],
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, text: str, source: str = EVALUATION_NAME) -> "Evaluation":
        """Read what `to_dict` describes.

        Raises:
            DowserError: it is something else; the field is named.
        """
        fields = Fields.parse(text, source)
        tasks, models = fields.section("tasks"), fields.sections("models")
        versions = fields.section_or_empty("versions")
        if not models or not tasks.value:
            raise DowserError(f"{source} has {len(models)} models and {len(tasks.value)} tasks, expected some of both.")
        known = {name: Asked.read(tasks.section(name)) for name in tasks.value}

        def of_all(key: str, read: Any) -> dict[str, dict[str, Any]]:
            parts = [(model.text("name"), model.section_or_empty(key)) for model in models]
            return {name: {one: read(part.section(one)) for one in part.value} for name, part in parts if part.value}

        scores = of_all("tasks", Scored.read)
        for model in models:
            if lacking := [task for task in known if task not in scores.get(model.text("name"), {})]:
                raise DowserError(f"{model.where} has no score of task {lacking[0]!r}.")
        told = {name: versions.text(name) for name in versions.value}
        return cls(known, scores, of_all("differences", Difference.read), of_all("questions", Questions.read), told)

    def to_json(self, provenance: Mapping[str, Any] | None = None) -> str:
        """The text of evaluation.json, with where the numbers come from."""
        return json.dumps(self.to_dict() | dict(provenance or {}), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Answered:
    """One task as one model answered it.

    Attributes:
        asked: how it was asked.
        score: of the task.
        rows: one for each question, with its `prediction` and, where the metric says something of single ones, `score`.
        seconds: that it took.
        told: by another program, where no single scores lead to that of the task.
    """

    asked: Asked
    score: float
    rows: list[Row]
    seconds: float
    told: Scored | None = None

    @property
    def count(self) -> int:
        """How many questions there are."""
        return (None if self.told is None else self.told.count) or len(self.rows)

    @property
    def standard_error(self) -> float | None:
        """The uncertainty of the score for want of questions; see `Scored`."""
        if self.told is not None:
            return self.told.standard_error
        of_mean = confirmed([{"after_score": row.get("score")} for row in self.rows], self.score, "after")
        singles = [float(row["score"]) for row in self.rows] if of_mean else []
        return stdev(singles) / math.sqrt(len(singles)) if len(singles) > 1 else None

    def scored(self) -> Scored:
        """The score with its standard error, without the answers."""
        return self.told or Scored(self.score, self.count, self.standard_error, self.seconds)


def paired_rows(first: Mapping[str, Answered], other: Mapping[str, Answered]) -> tuple[list[Row], dict[str, Questions]]:
    """The answers of two models to the same questions, and what became of these.

    Args:
        first: task -> answers of the model that is compared with.
        other: of the other one, to the same tasks.

    Returns:
        Rows as `read_answers` reads them, and task name -> counts.
    """
    asked = [with_answers([], first[task].rows, "before") for task in first]
    rows = [
        row for mine, task in zip(asked, first, strict=True) for row in with_answers(mine, other[task].rows, "after")
    ]
    scores = [{task: answered.score for task, answered in each.items()} for each in (first, other)]
    return rows, counted(rows, *scores)
