"""Several runs on one trade-off plane, to be pasted into a talk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dowser_pl.reporting.grid import shorten
from dowser_pl.reporting.plot import MARGIN, TOP, save_figure
from dowser_pl.reporting.plot_plane import draw_move, draw_number, draw_plane
from dowser_pl.reporting.plot_style import (
    MUTED,
    RUN_COLOURS,
    SMALL,
    SUBTITLE,
    TITLE,
    add_axes,
    draw_circle,
    new_figure,
    signed,
    write,
)
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.wording import lost_text, number_text, ratio_text, score_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 13.33, 7.5
PLANE_LEFT, PLANE_SIZE = 1.25, 5.2
LIST_LEFT, LINE_INCHES = 7.3, 0.55
COLUMNS, COLUMN_RIGHTS = ("downstream", "upstream", "drop", "H"), (10.4, 11.35, 12.1, 12.83)


def plot_comparison(reports: Sequence[Report], path: str | Path) -> None:
    """Write the picture of several runs, atomically; the suffix decides the format.

    Raises:
        ValueError: no run has tasks of both roles, or the suffix is not .png, .pdf or .svg.
    """
    save_figure(draw_comparison(reports), path)


def draw_comparison(reports: Sequence[Report]) -> Figure:
    """Numbered points on the plane at the left, what each number is at the right."""
    runs = [(number, report) for number, report in enumerate(reports, 1) if report.h_score.after is not None]
    if not runs:
        raise ValueError(
            "No run has both upstream and downstream tasks, so there is no trade-off to plot. "
            "Give the data module evaluation tasks of both roles."
        )
    figure = new_figure(WIDTH, max(HEIGHT, TOP + 0.8 + LINE_INCHES * (len(runs) + 1) + MARGIN))
    write(figure, MARGIN, 0.62, "What each run learnt and kept", fontsize=TITLE, fontweight="bold")
    write(
        figure,
        MARGIN,
        0.95,
        "arrows lead from the base model to each tuned model; best H-score first",
        fontsize=SUBTITLE,
        color=MUTED,
    )
    draw_runs(figure, runs)
    draw_list(figure, runs)
    return figure


def run_colour(position: int) -> str:
    """The colour of the nth run; the number tells runs apart where colours repeat."""
    return RUN_COLOURS[position % len(RUN_COLOURS)]


def ends(report: Report) -> tuple[tuple[float, float], tuple[float, float]]:
    """The base model and the tuned one on the plane."""
    upstream, downstream = report.upstream, report.downstream
    return (
        (downstream.before or 0.0, upstream.before or 0.0),
        (downstream.after or 0.0, upstream.after or 0.0),
    )


def draw_runs(figure: Figure, runs: Sequence[tuple[int, Report]]) -> None:
    """One arrow per run; runs that start from the same scores share one hollow circle."""
    axes = add_axes(figure, PLANE_LEFT, TOP + 0.1, PLANE_SIZE, PLANE_SIZE)
    draw_plane(axes, [point for _, report in runs for point in ends(report)])
    for position, (_, report) in enumerate(runs):
        draw_move(axes, *ends(report), run_colour(position), alpha=0.35)
    for before in {ends(report)[0] for _, report in runs}:
        draw_circle(axes, before, MUTED, filled=False, size=15)
        draw_number(axes, before, "0", MUTED)
    for position, (number, report) in enumerate(runs):
        draw_circle(axes, ends(report)[1], run_colour(position), filled=True, size=15)
        draw_number(axes, ends(report)[1], str(number))


def draw_list(figure: Figure, runs: Sequence[tuple[int, Report]]) -> None:
    """Number, method, settings and scores of each run, best H-score first, the base model last."""
    for name, right in zip(COLUMNS, COLUMN_RIGHTS, strict=True):
        write(figure, right, TOP + 0.2, name, ha="right", fontsize=SMALL, color=MUTED)
    colours = {number: run_colour(position) for position, (number, _) in enumerate(runs)}
    ranked = sorted(runs, key=lambda run: -(run[1].h_score.after or 0.0))
    for line, (number, report) in enumerate(ranked):
        details = [report.run] if report.run else []
        details += [f"ratio {ratio_text(report)}", f"lr {number_text(report.learning_rate)}"]
        lost = signed(lost_text(-(report.upstream.change or 0.0)))
        after = (report.downstream.after, report.upstream.after, report.h_score.after)
        title = (str(number), colours[number], report.method, "  \u00b7  ".join(details))
        draw_line(figure, line, title, [*map(score_text, after[:2]), lost, score_text(after[2])])
    base = runs[0][1]
    before = (base.downstream.before, base.upstream.before)
    cells = [*map(score_text, before), "", score_text(base.h_score.before)]
    draw_line(figure, len(ranked), ("0", MUTED, "base model", "before training"), cells)


def draw_line(figure: Figure, line: int, name: tuple[str, str, str, str], cells: Sequence[str]) -> None:
    """One entry of the list; name: number, its colour, title, details."""
    number, colour, title, details = name
    top = TOP + 0.65 + LINE_INCHES * line
    write(figure, LIST_LEFT, top, number, fontweight="bold", color=colour)
    write(figure, LIST_LEFT + 0.36, top, shorten(title, 22), fontweight="bold")
    write(figure, LIST_LEFT + 0.36, top + 0.19, shorten(details, 60), fontsize=SMALL, color=MUTED)
    for right, cell in zip(COLUMN_RIGHTS, cells, strict=True):
        write(figure, right, top, cell, ha="right")
