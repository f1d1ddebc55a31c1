"""Several runs on one trade-off plane, to be pasted into a talk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dowser_pl.errors import DowserError
from dowser_pl.reporting.plots.plane import Entry, Numbered, draw_list, draw_move, draw_numbered, draw_plane
from dowser_pl.reporting.plots.style import (
    HEIGHT,
    MARGIN,
    MUTED,
    RUN_COLOURS,
    TOP,
    add_axes,
    draw_bar,
    new_page,
    save_page,
    signed,
)
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.table import lost_text, number_text, ratio_text, score_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLANE_LEFT, PLANE_SIZE = 1.25, 5.2
LIST_LEFT, LINE_INCHES = 7.3, 0.55
COLUMNS = {"downstream": 10.4, "upstream": 11.35, "drop": 12.1, "H": 12.83}
SUBTITLE_TEXT = (
    "arrows lead from the base model to each tuned model; best H-score, the harmonic mean of both means, first"
)


def plot_comparison(reports: Sequence[Report], path: str | Path, dark: bool = False) -> None:
    """Write the picture of several runs, atomically; the suffix decides the format.

    Raises:
        DowserError: no run has tasks of both roles, or the suffix is not .png, .pdf or .svg.
    """
    save_page(draw_comparison(reports), path, dark)


def draw_comparison(reports: Sequence[Report]) -> Figure:
    """Numbered points on the plane at the left, what each number is at the right."""
    runs = [(number, report) for number, report in enumerate(reports, 1) if report.h_score.after is not None]
    if not runs:
        raise DowserError(
            "No run has both upstream and downstream tasks, so there is no trade-off to plot. "
            "Give the data module evaluation tasks of both roles."
        )
    height = max(HEIGHT, TOP + 0.8 + LINE_INCHES * (len(runs) + 1) + MARGIN)
    figure = new_page("What each run learnt and kept", SUBTITLE_TEXT, height)
    draw_runs(figure, runs)
    draw_list(figure, LIST_LEFT, TOP + 0.15, COLUMNS, entries(runs), LINE_INCHES)
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
    for position, (_, report) in enumerate(runs):
        downstream, upstream = (report.role_interval(role, "after") for role in ("downstream", "upstream"))
        draw_bar(axes, ends(report)[1], downstream, run_colour(position), upright=False)
        draw_bar(axes, ends(report)[1], upstream, run_colour(position), upright=True)
    bases = sorted({ends(report)[0] for _, report in runs})
    tuned = [(ends(report)[1], str(number), run_colour(place)) for place, (number, report) in enumerate(runs)]
    draw_numbered(axes, [*(Numbered(base, "0", MUTED, False) for base in bases), *(Numbered(*each) for each in tuned)])


def entries(runs: Sequence[tuple[int, Report]]) -> list[Entry]:
    """Number, method, settings and scores of each run, best H-score first, the base model last."""
    colours = {number: run_colour(position) for position, (number, _) in enumerate(runs)}
    found = []
    for number, report in sorted(runs, key=lambda run: -(run[1].h_score.after or 0.0)):
        details = [report.run] if report.run else []
        details += [f"ratio {ratio_text(report)}", f"lr {number_text(report.learning_rate)}"]
        lost = signed(lost_text(-(report.upstream.change or 0.0)))
        downstream, upstream, h_score = scores(report, "after")
        cells = [downstream, upstream, lost, h_score]
        found.append(Entry(str(number), colours[number], report.method, "  \u00b7  ".join(details), cells))
    downstream, upstream, h_score = scores(runs[0][1], "before")
    return [*found, Entry("0", MUTED, "base model", "before training", [downstream, upstream, "", h_score])]


def scores(report: Report, moment: str) -> tuple[str, ...]:
    """Downstream mean, upstream mean and H-score "before" or "after" training."""
    means = (report.downstream, report.upstream, report.h_score)
    return tuple(score_text(getattr(mean, moment)) for mean in means)
