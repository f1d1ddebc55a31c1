"""The report of one run as a table: for the terminal (100 columns) and as Markdown."""

import textwrap

from dowser_pl.reporting.curve_table import curve_parts
from dowser_pl.reporting.grid import RULE, markdown_grid, text_grid
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.scores import ROLES, BeforeAfter, TaskScore
from dowser_pl.reporting.wording import change_text, facts, score_text, settings

HEADER = ("task", "role", "metric", "before", "after", "change")
ALIGNS = "lllrrr"
WIDTH = 100


def numbers(score: TaskScore | BeforeAfter) -> tuple[str, str, str]:
    """The cells before, after, change."""
    return score_text(score.before), score_text(score.after), change_text(score.change)


def task_rows(report: Report) -> list[tuple[str, ...]]:
    """Downstream tasks, then upstream tasks, in the order of the run."""
    return [
        (name, task.role, task.metric, *numbers(task)) for role in ROLES for name, task in report.of_role(role).items()
    ]


def mean_rows(report: Report) -> list[tuple[str, ...]]:
    """The means and the trade-off; "-" where a role has no task."""
    return [
        ("upstream mean", "", "", *numbers(report.upstream)),
        ("downstream mean", "", "", *numbers(report.downstream)),
        ("H-score", "", "", *numbers(report.h_score)),
    ]


def text_table(report: Report) -> str:
    """What a run prints at its end; no line is wider than 100 columns, no newline at the end."""
    heading = textwrap.fill(", ".join([report.method, *settings(report)]), WIDTH, subsequent_indent="  ")
    grid = text_grid(HEADER, [*task_rows(report), RULE, *mean_rows(report)], ALIGNS, WIDTH)
    names = max(len(name) for name, _ in facts(report))
    lines = (f"{name:<{names}}  {value}" for name, value in facts(report))
    curve = [wrapped(part) for part in curve_parts(report, text_grid)]
    return "\n\n".join([heading, grid, *curve, "\n".join(lines)])


def wrapped(part: str) -> str:
    """A sentence as lines of at most 100 columns; a table as it is."""
    return part if "\n" in part else textwrap.fill(part, WIDTH)


def markdown_table(report: Report) -> str:
    """The same as Markdown, without a heading."""
    means = [tuple(f"**{cell}**" if cell else "" for cell in row) for row in mean_rows(report)]
    grid = markdown_grid(HEADER, [*task_rows(report), *means], ALIGNS)
    lines = (f"- {name}: {value}" for name, value in facts(report))
    return "\n\n".join([grid, *curve_parts(report, markdown_grid), "\n".join(lines)])


def markdown_page(report: Report, picture: str | None = None, curve_picture: str | None = None) -> str:
    """The contents of report.md: heading, settings, pictures, tables, versions.

    Args:
        report: the run.
        picture: file name of the plot beside it, if there is one.
        curve_picture: file name of the plot of the curve, if there is one.
    """
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    parts = [f"# {report.run or report.method}", ", ".join([f"**{report.method}**", *settings(report)])]
    if picture:
        parts.append(f"![before and after, task by task, and the trade-off]({picture})")
    if curve_picture:
        parts.append(f"![what is learnt and kept at every update ratio]({curve_picture})")
    parts.append(markdown_table(report))
    if versions:
        parts.append(f"Versions: {versions}")
    return "\n\n".join(parts) + "\n"
