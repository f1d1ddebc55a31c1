"""Several runs side by side: one line per run, then task by task what is left after each."""

from collections.abc import Sequence
from functools import partial

from dowser_pl.errors import DowserError
from dowser_pl.reporting.drift import kl_text
from dowser_pl.reporting.protocols import check_protocols, protocol_facts
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.scores import ROLES
from dowser_pl.reporting.table import (
    NOTHING,
    RULE,
    Grid,
    lost_text,
    markdown_grid,
    number_text,
    score_text,
    seconds_text,
    terminal_width,
    text_grid,
)

RUN_HEADER = ("run", "method", "ratio", "lr", "steps", "downstream", "upstream", "drop", "H", "time")
RUN_ALIGNS = "llrrrrrrrr"
RUNS_PER_BLOCK = 6


def run_names(reports: Sequence[Report]) -> list[str]:
    """Names such as "1 quickstart"; the number stands for the run in the second table and in the plot."""
    return [f"{number} {report.run or report.method}" for number, report in enumerate(reports, start=1)]


def run_row(name: str, report: Report) -> tuple[str, ...]:
    """One run; drop is the upstream mean lost to training (positive = forgotten)."""
    lost, ratio = report.upstream.change, number_text(report.update_ratio)
    return (
        name,
        report.method,
        ratio if report.budget is None else f"{number_text(report.budget.update_ratio)} of {ratio}",
        number_text(report.learning_rate),
        NOTHING if report.steps is None else f"{report.steps}",
        score_text(report.downstream.after),
        score_text(report.upstream.after),
        lost_text(None if lost is None else -lost),
        score_text(report.h_score.after),
        seconds_text(report.seconds.total),
    )


def with_drift(header: Sequence[str], rows: Sequence[Sequence[str]], reports: Sequence[Report]) -> list[Sequence[str]]:
    """Header and rows with KL to the base before the last column, where it was measured at all; steps make room for it.

    Args:
        header: of the table.
        rows: the base model, a rule, then one for each run.
        reports: of the runs.
    """
    if all(report.drift is None for report in reports):
        return [header, *rows]
    drifts = [NOTHING if report.drift is None else kl_text(report.drift.all.kl) for report in reports]
    cells, steps = ["KL", "", NOTHING, *drifts], header.index("steps")
    return [
        (*row[:steps], *row[steps + 1 : -1], cell, row[-1]) if row else row
        for row, cell in zip([header, *rows], cells, strict=True)
    ]


def task_names(reports: Sequence[Report]) -> list[str]:
    """The tasks of all runs, downstream first, each once."""
    found = (name for role in ROLES for report in reports for name in report.of_role(role))
    return list(dict.fromkeys(found))


def task_row(task: str, base: Report, reports: Sequence[Report]) -> tuple[str, ...]:
    """A task's score of the base model, then after each run; "-" where a run lacks it."""
    cells = [score_text(report.tasks[task].after) if task in report.tasks else NOTHING for report in reports]
    before = score_text(base.tasks[task].before) if task in base.tasks else NOTHING
    return (task, before, *cells)


def warnings(reports: Sequence[Report]) -> list[str]:
    """Why the runs may not be comparable; empty if they start from the same scores on the same tasks."""
    notes = []
    first = reports[0]
    for number, report in enumerate(reports[1:], start=2):
        if set(report.tasks) != set(first.tasks):
            notes.append(f"Run {number} has other tasks than run 1: their means are not comparable.")
        elif any(report.tasks[name].before != task.before for name, task in first.tasks.items()):
            notes.append(f"Run {number} starts from other scores than run 1: another model or other data.")
    return notes


def comparison(reports: Sequence[Report], grid: Grid) -> str:
    """Tables of scores and facts of several runs, laid out by `grid`, and the warnings.

    Raises:
        DowserError: no report, or tasks that were measured in different ways.
    """
    if not reports:
        raise DowserError("Got no report to compare, expected at least one.")
    check_protocols(reports)
    names = run_names(reports)
    base_row = ("0 base", "", "", "", "", *before_cells(reports[0]), "")
    header, *rows = with_drift(RUN_HEADER, [base_row, RULE, *map(run_row, names, reports)], reports)
    parts = [grid(header, rows, RUN_ALIGNS)]
    for start in range(0, len(reports), RUNS_PER_BLOCK):
        block = reports[start : start + RUNS_PER_BLOCK]
        header = ("task", "0 base", *(f"{number}" for number in range(start + 1, start + 1 + len(block))))
        rows = [task_row(task, reports[0], block) for task in task_names(reports)]
        parts.append(grid(header, rows, "l" + "r" * (len(block) + 1)))
    foot = [f"{name}: {told}" for name, told in protocol_facts(reports[0])]
    return "\n\n".join([*parts, *foot, *warnings(reports)])


def before_cells(report: Report) -> tuple[str, str, str, str]:
    """downstream, upstream, drop, H of the base model."""
    return (
        score_text(report.downstream.before),
        score_text(report.upstream.before),
        "",
        score_text(report.h_score.before),
    )


def text_comparison(reports: Sequence[Report]) -> str:
    """The comparison of several runs for the terminal, no wider than it or 100 columns."""
    return comparison(reports, partial(text_grid, limit=terminal_width()))


def markdown_comparison(reports: Sequence[Report]) -> str:
    """The comparison of several runs as Markdown."""
    return comparison(reports, markdown_grid)
