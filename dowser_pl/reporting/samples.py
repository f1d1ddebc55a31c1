"""A few answers of each task before and after training, as Markdown."""

import re
from collections.abc import Sequence

from dowser_pl.reporting.answers import Row, of_tasks, samples
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.scores import ROLES
from dowser_pl.reporting.table import NOTHING, markdown_grid, shorten

HEADER = ("", "question", "right", "base", "tuned")
LONGEST = 160
"""Columns of a question or an answer; of longer ones the middle is left out."""


def markdown_samples(report: Report, answers: Sequence[Row]) -> str:
    """A section with a table for each task, in the order of the scores; empty where there are no answers.

    Args:
        report: the run.
        answers: to every question, before and after.
    """
    by_task = of_tasks(answers)
    names = [name for role in ROLES for name in report.of_role(role) if name in by_task]
    parts = ["## Answers before and after"]
    for name in names:
        rows = [_cells(answers[sample.place], sample.kind) for sample in samples(answers, name)]
        parts.append(f"{plain(name)}, {len(rows)} of {len(by_task[name])} questions:")
        parts.append(markdown_grid(HEADER, rows, "l" * len(HEADER)))
    return "\n\n".join(parts) if names else ""


def plain(text: object) -> str:
    """A text of anybody's on one line, cut, of which nothing is read as Markdown or HTML."""
    short = shorten(" ".join(str(text).split()), LONGEST)
    return re.sub(r"([\\`*_{}\[\]<>#~&!$])", r"\\\1", short)


def _cells(row: Row, kind: str) -> tuple[str, ...]:
    right = " / ".join(dict.fromkeys(map(str, row["references"] or [NOTHING])))
    return (kind, plain(row["question"]), plain(right), _answer(row["before"]), _answer(row["after"]))


def _answer(said: str | None) -> str:
    return "not kept" if said is None else plain(said) or "(nothing)"
