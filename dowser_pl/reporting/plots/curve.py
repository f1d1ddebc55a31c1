"""The picture of one run's curve: the path through the trade-off plane, and both means over the update ratio."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from dowser_pl.reporting.curve_table import budget_text
from dowser_pl.reporting.grid import shorten
from dowser_pl.reporting.plots.page import MARGIN, TOP, WIDTH, new_page, save_page
from dowser_pl.reporting.plots.path import draw_path
from dowser_pl.reporting.plots.ratios import draw_panels
from dowser_pl.reporting.plots.style import HEADING, LOSS, MUTED, SMALL, add_axes, signed, write
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.wording import change_text, number_text, settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLANE_LEFT, PLANE_TOP, PLANE_WIDTH, PLANE_HEIGHT, FOOT = 1.25, TOP + 0.55, 5.2, 4.4, 7.03
PANELS_LEFT = 7.55
LONGEST_SUBTITLE, LONGEST_NOTE = 120, 160
RING_NOTE = "Ring: the knee, farthest above the dashed line from the base model to the trained ratio."


def plot_curve(report: Report, path: str | Path) -> None:
    """Write the picture of a run's curve, atomically; the suffix decides the format.

    Raises:
        ValueError: the run has no curve, or the suffix is not .png, .pdf or .svg.
    """
    save_page(draw_curve_page(report), path)


def has_picture(report: Report) -> bool:
    """Whether there is a curve, of at least one task."""
    return bool(report.curve and report.tasks)


def draw_curve_page(report: Report) -> Figure:
    """The plane at the left if there are tasks of both roles, the means over the ratio at the right."""
    if not has_picture(report):
        raise ValueError(
            "The run has no curve to draw: it was not measured at several update ratios, or on no task. Its report "
            "has no points under 'curve'."
        )
    both = report.h_score.after is not None
    figure = new_page(curve_headline(report), shorten("  \u00b7  ".join(settings(report)), LONGEST_SUBTITLE))
    left = PANELS_LEFT if both else MARGIN + 0.4
    draw_panels(figure, report, left, TOP + 0.2, (WIDTH - MARGIN - left, PLANE_TOP + PLANE_HEIGHT - TOP - 0.2))
    if both:
        write(
            figure, MARGIN, TOP + 0.24, "From the base model to the trained ratio", fontsize=HEADING, fontweight="bold"
        )
        draw_path(add_axes(figure, PLANE_LEFT, PLANE_TOP, PLANE_WIDTH, PLANE_HEIGHT), report)
    for line, (text, colour) in enumerate(notes(report)):
        write(figure, MARGIN, FOOT + 0.17 * line, text, fontsize=SMALL, color=colour)
    return figure


def notes(report: Report) -> list[tuple[str, str]]:
    """Lines under the picture and their colours: what the ring is, what was asked and chosen."""
    found = []
    if report.knee is not None and report.h_score.after is not None:
        found.append((RING_NOTE, MUTED))
    if report.budget is not None:
        colour = MUTED if report.budget.kept else LOSS
        found += [(line, colour) for line in wrap(budget_text(report.budget), LONGEST_NOTE)]
    return found


def curve_headline(report: Report) -> str:
    """What was chosen, or where the curve bends: "Knee at update ratio 0.03: downstream +0.538, upstream -0.009"."""
    budget = report.budget
    if budget is not None:
        name, ratio = "Chosen update ratio" if budget.kept else "Budget not kept, update ratio", budget.update_ratio
    elif report.knee is not None:
        name, ratio = "Knee at update ratio", report.knee
    else:
        return "What every update ratio learns and keeps"
    changes = [
        f"{role} {signed(change_text(after - before))}"
        for means in report.curve_means
        for role, after, before in (
            ("downstream", means.downstream, report.downstream.before),
            ("upstream", means.upstream, report.upstream.before),
        )
        if means.update_ratio == ratio and after is not None and before is not None
    ]
    return ": ".join([f"{name} {number_text(ratio)}", *([", ".join(changes)] if changes else [])])
