"""What a person says of tasks that another program measured: which were learnt, by which score, of how many.

The files know nothing of roles, and few say on which scale a score is. Scores enter our tables as shares of what can be
got; those of captions by CIDEr, of which ten can be, as they are before papers multiply them by 100.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dowser_pl.errors import DowserError
from dowser_pl.reporting.evaluation import Answered, Asked, Evaluation, Scored
from dowser_pl.reporting.harnesses.measured import Measured, Value, leads_to
from dowser_pl.reporting.protocols import check_protocols
from dowser_pl.reporting.scores import Role

__all__ = ["Terms", "comparable_answers"]

_MAIN = ("Overall", "Overall|Overall")
_ASKED = ("id", "question", "references")


@dataclass(frozen=True)
class Terms:
    """Roles, metrics and scales of tasks.

    Attributes:
        downstream: the tasks that the model was tuned for.
        upstream: those that it should still do; None = all others.
        metrics: task -> the score of its file that counts, where there are several.
        tops: task -> what a model can get at most, where that is not 1: 100 for percent.
    """

    downstream: tuple[str, ...] = ()
    upstream: tuple[str, ...] | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    tops: Mapping[str, float] = field(default_factory=dict)

    def answered(self, tasks: Mapping[str, Measured]) -> dict[str, Answered]:
        """The tasks of one model that count, as our own evaluation would keep them.

        Raises:
            DowserError: a task is named that there is not, or twice; or which score counts, or on which scale it is,
                has to be said.
        """
        self._check_names(tasks)
        chosen = [task for task in tasks if self.upstream is None or task in (*self.downstream, *self.upstream)]
        if not chosen:
            raise DowserError("there is no task to compare")
        metrics = {task: self._metric(task, tasks[task]) for task in chosen}
        self._check_scales(tasks, metrics)
        return {task: self._answered(task, tasks[task], metric) for task, metric in metrics.items()}

    def _check_names(self, tasks: Mapping[str, Measured]) -> None:
        for option, names in (
            ("downstream", self.downstream),
            ("upstream", self.upstream or ()),
            ("metric", self.metrics),
            ("out-of", self.tops),
        ):
            if unknown := [name for name in names if name not in tasks]:
                raise DowserError(f"--{option} names {unknown[0]}, expected a task of: {', '.join(tasks)}")
        if both := set(self.downstream) & set(self.upstream or ()):
            raise DowserError(f"{min(both)} is both upstream and downstream, expected one of them")

    def _metric(self, task: str, measured: Measured) -> str:
        names = list(measured.values)
        if not names:
            raise DowserError(
                f"{measured.file} has no score of {task}, as where answers are sent to a server. Fix: name the tasks "
                "that count with --upstream and --downstream"
            )
        named = self.metrics.get(task)
        main = names if len(names) == 1 else [name for name in names if name in _MAIN or _is_cider(name)]
        metric = named or (main[0] if len(main) == 1 else None)
        if metric not in names:
            got = f"got --metric {task}={named}" if named else f"{task} has several scores"
            raise DowserError(f"{got}. Fix: --metric {task}=NAME with one of: {', '.join(names)} ({measured.file})")
        if measured.values[metric].lower_is_better:
            raise DowserError(
                f"of {task}, {metric} is better the lower it is, and cannot be averaged with scores. Fix: name another "
                f"with --metric {task}=NAME, or leave the task out with --upstream and --downstream"
            )
        return metric

    def _check_scales(self, tasks: Mapping[str, Measured], metrics: Mapping[str, str]) -> None:
        """Refuse scores above what a share can be, all at once, unless it is said of how many they are."""
        found = {task: tasks[task].values[metric] for task, metric in metrics.items()}
        odd = {task: each for task, each in found.items() if task not in self.tops and _no_share(metrics[task], each)}
        if odd:
            told = ", ".join(f"{task} {each.score:g}" for task, each in odd.items())
            fix = " ".join(f"{task}=100" for task in odd)
            raise DowserError(f"these scores are no shares of 1: {told}. Fix: if they are in percent, --out-of {fix}")
        for task, top in self.tops.items():
            if task in found and found[task].score > top * _most(metrics[task]):
                raise DowserError(f"got --out-of {task}={top:g}, but it scores {found[task].score:g}")

    def _answered(self, task: str, measured: Measured, metric: str) -> Answered:
        value, top = measured.values[metric], self.tops.get(task, 1.0)
        role: Role = "downstream" if task in self.downstream else "upstream"
        score = value.score / top
        protocol = measured.protocol | {"metric": metric, "out of": top, "questions": measured.count}
        scale = next((scale for scale in (top, 1.0) if leads_to(value.singles, score, scale)), None)
        scores: list[float | None] = [None] * len(measured.rows)
        told = None
        if scale is None:
            error = None if value.standard_error is None else value.standard_error / top
            told = Scored(score, measured.count, error, 0.0)
        else:
            scores = [single / scale for single in value.singles]
        rows = [row | {"task": task, "score": each} for row, each in zip(measured.rows, scores, strict=True)]
        return Answered(Asked(role, metric, protocol), score, rows, 0.0, told)


def _is_cider(name: str) -> bool:
    return name.lower().endswith("cider")


def _most(metric: str) -> float:
    return 10.0 if _is_cider(metric) else 1.0


def _no_share(metric: str, value: Value) -> bool:
    """Whether a score is above what there is, or is in percent as single ones say that lead to it."""
    percent = leads_to(value.singles, value.score / 100) and not leads_to(value.singles, value.score)
    return percent or value.score > _most(metric)


def comparable_answers(models: Mapping[str, Mapping[str, Measured]], terms: Terms) -> dict[str, dict[str, Answered]]:
    """Tasks of several models, which were asked the same questions in the same way.

    Args:
        models: name -> task -> what another program measured.
        terms: of all of them.

    Raises:
        DowserError: they were not, or `Terms.answered` refuses.
    """
    found = {name: terms.answered(tasks) for name, tasks in models.items()}
    first, *others = found
    for name in others:
        if lacking := set(found[first]) ^ set(found[name]):
            task = min(lacking)
            has = first if task in found[first] else name
            raise DowserError(
                f"task {task} was asked of {has} alone. Fix: name the tasks to compare with --upstream and --downstream"
            )
    check_protocols([_alone(name, answered).report(name) for name, answered in found.items()])
    for name in others:
        for task, answered in found[first].items():
            _check_questions(task, answered, found[name][task], f"{first} and {name}")
    return found


def _check_questions(task: str, one: Answered, other: Answered, models: str) -> None:
    """Refuse answers to different questions, of which there are as many."""
    for mine, its in zip(one.rows, other.rows, strict=bool(one.rows and other.rows)):
        if any(mine[part] != its[part] for part in _ASKED):
            raise DowserError(f"{models} were not asked the same questions of task {task}: {mine['id']} is another")


def _alone(name: str, answered: Mapping[str, Answered]) -> Evaluation:
    asked = {task: each.asked for task, each in answered.items()}
    return Evaluation(asked, {name: {task: each.scored() for task, each in answered.items()}})
