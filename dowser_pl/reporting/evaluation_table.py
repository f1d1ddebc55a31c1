"""An evaluation as text and as Markdown: what each model scored, and how far the others are from the first."""

import textwrap
from collections.abc import Sequence
from functools import partial

from dowser_pl.reporting.evaluation import Difference, Evaluation, Scored
from dowser_pl.reporting.protocols import protocol_facts
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.scores import ROLES, BeforeAfter, TaskScore
from dowser_pl.reporting.table import (
    NOTHING,
    RULE,
    Grid,
    change_text,
    markdown_grid,
    score_text,
    seconds_text,
    shorten,
    terminal_width,
    text_grid,
)

__all__ = ["evaluation_page", "evaluation_text"]

_A_BLOCK = 3  # models side by side
_SCORED = "Behind a score stands its standard error for want of questions."
_COMPARED = (
    "Differences are of the same questions: 95 % intervals and two-sided p-values by a paired bootstrap, not adjusted "
    "for how many are looked at."
)


def evaluation_text(evaluation: Evaluation) -> str:
    """For the terminal, no line wider than that or 100 columns; no newline at the end."""
    limit = terminal_width()
    grid = partial(text_grid, limit=limit)
    lines = [shorten(line, limit) for line in _names(evaluation)]
    foot = (textwrap.fill(line, limit, break_long_words=False) for line in _foot(evaluation))
    return "\n\n".join(["\n".join(lines), *_tables(evaluation, grid), "\n".join(foot)])


def evaluation_page(evaluation: Evaluation) -> str:
    """The contents of evaluation.md."""
    names = "\n".join(f"{number}. {name}" for number, name in enumerate(evaluation.models, 1))
    foot = "\n".join(f"- {line}" for line in _foot(evaluation))
    return "\n\n".join(["# Evaluation", names, *_tables(evaluation, markdown_grid), foot]) + "\n"


def _names(evaluation: Evaluation) -> list[str]:
    return [f"{number}  {name}" for number, name in enumerate(evaluation.models, 1)]


def _tables(evaluation: Evaluation, grid: Grid) -> list[str]:
    numbered = list(enumerate(evaluation.models, 1))
    parts = []
    for start in range(0, len(numbered), _A_BLOCK):
        block = numbered[start : start + _A_BLOCK]
        header = ("task", "role", "metric", "n", *(str(number) for number, _ in block))
        names = [name for _, name in block]
        rows = [*_task_rows(evaluation, names), RULE, *_mean_rows(evaluation, names)]
        parts.append(grid(header, rows, "lllr" + "r" * len(block)))
    if len(numbered) > 1:
        rows = []
        for number, name in numbered[1:]:
            rows += [RULE] * bool(rows) + _difference_rows(evaluation, number, name)
        parts.append(grid(("task", "models", "difference", "95 %", "p"), rows, "llrrr"))
    return parts


def _task_rows(evaluation: Evaluation, names: Sequence[str]) -> list[tuple[str, ...]]:
    order = [(task, asked) for role in ROLES for task, asked in evaluation.tasks.items() if asked.role == role]
    return [
        (
            task,
            asked.role,
            TaskScore(asked.role, asked.metric, 1.0, 1.0).title,
            _count(evaluation.models[names[0]][task].count),
            *(_score(evaluation.models[name][task]) for name in names),
        )
        for task, asked in order
    ]


def _count(count: int | None) -> str:
    return NOTHING if count is None else str(count)


def _score(scored: Scored) -> str:
    error = "" if scored.standard_error is None else f" \u00b1{scored.standard_error:.3f}"
    return f"{score_text(scored.score)}{error}"


def _means(report: Report) -> dict[str, BeforeAfter]:
    return {"upstream mean": report.upstream, "downstream mean": report.downstream, "H-score": report.h_score}


def _mean_rows(evaluation: Evaluation, names: Sequence[str]) -> list[tuple[str, ...]]:
    means = [_means(evaluation.report(name)) for name in names]
    return [
        (row, "", "", "", *(score_text(each[row].after) for each in means))
        for row in means[0]
        if means[0][row].after is not None
    ]


def _difference_rows(evaluation: Evaluation, number: int, name: str) -> list[tuple[str, ...]]:
    report, known = evaluation.report(name), evaluation.differences.get(name, {})
    changes = {task: each.change for role in ROLES for task, each in report.of_role(role).items()}
    changes |= {row: each.change for row, each in _means(report).items() if each.change is not None}
    return [
        (task, f"{number} less 1", change_text(change), *_uncertain(known.get(task)))
        for task, change in changes.items()
    ]


def _uncertain(difference: Difference | None) -> tuple[str, str]:
    if difference is None:
        return NOTHING, NOTHING
    ends = f"{change_text(difference.low)} to {change_text(difference.high)}"
    return ends, "< 0.001" if difference.p < 0.001 else f"{difference.p:.3f}"


def _foot(evaluation: Evaluation) -> list[str]:
    seconds = sum(each.seconds for scores in evaluation.models.values() for each in scores.values())
    protocols = [f"{name}: {told}" for name, told in protocol_facts(evaluation.reports()[0])]
    compared = [_COMPARED] if len(evaluation.models) > 1 else []
    asked = [f"Asked for {seconds_text(seconds)}."] if seconds else []  # another program does not say
    return [_SCORED, *compared, *_without_h(evaluation), *protocols, *asked]


def _without_h(evaluation: Evaluation) -> list[str]:
    lacking = set(ROLES) - {asked.role for asked in evaluation.tasks.values()}
    return [f"No H-score, which is of both roles: no task is {role}." for role in sorted(lacking)]
