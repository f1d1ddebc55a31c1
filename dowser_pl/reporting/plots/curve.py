"""The picture of one run's curve: the path through the trade-off plane, and both means over the update ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

from dowser_pl.errors import DowserError
from dowser_pl.reporting.plots.plane import draw_path, tuned_place
from dowser_pl.reporting.plots.style import (
    BODY,
    DASHES,
    FAINT,
    GAIN,
    HEADING,
    INK,
    LOSS,
    MARGIN,
    MUTED,
    SMALL,
    TOP,
    WIDTH,
    add_axes,
    draw_circle,
    new_page,
    save_page,
    signed,
    write,
)
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.table import budget_text, change_text, number_text, settings_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEAD_INCHES, GAP_INCHES = 0.2, 0.75  # heading above a panel, space below it for its scale and the next heading
LIMIT_INCHES = 0.4  # right of the panels, for the name of a limit
LETTER_INCHES = 0.075  # of a small letter
APART = 3.5  # hollow circles are larger, to be seen behind full ones, in points
LEAST_SHOWN = 0.02  # a smaller loss is not blown up to the height of the panel


class Line(NamedTuple):
    """One mean over the ratios of the curve; None where it was not measured."""

    name: str
    colour: str
    values: Sequence[float | None]
    apart: bool = False  # measured on other data than the report


class Panel(NamedTuple):
    """Lines that share a scale; `limit` is drawn across."""

    heading: str
    lines: list[Line]
    limit: float | None = None


def panels(report: Report) -> list[Panel]:
    """What is learnt, then what is lost; a role without a task has no panel."""
    means, found = report.curve_means, []
    if report.downstream.before is not None:
        learnt = [Line("downstream mean", GAIN, [mean.downstream for mean in means])]
        if report.upstream.before is not None:
            learnt.append(Line("H-score", MUTED, [mean.h_score for mean in means]))
        found.append(Panel("Learnt", learnt))
    base, budget = report.upstream.before, report.budget
    if base is not None:
        lost = [Line("upstream mean lost", LOSS, [base - (mean.upstream or 0.0) for mean in means])]
        if budget is not None and budget.drops:
            drops = [budget.drops.get(mean.update_ratio) for mean in means]
            lost.append(Line("on data to choose on", MUTED, drops, apart=True))
        found.append(Panel("Forgotten", lost, None if budget is None else budget.max_upstream_drop))
    if budget is not None and budget.drifts:
        drifts = [budget.drifts.get(mean.update_ratio) for mean in means]
        found.append(Panel("Drift", [Line("KL to the base", LOSS, drifts, apart=True)], budget.max_drift))
    return found


def draw_panels(figure: Figure, report: Report, left: float, top: float, size: tuple[float, float]) -> None:
    """Draw all panels below each other, in inches; `size` is width and height of all together."""
    shown, ratios = panels(report), [point.update_ratio for point in report.curve]
    width = size[0] - (0.0 if report.budget is None else LIMIT_INCHES)
    height = (size[1] + GAP_INCHES) / len(shown) - GAP_INCHES
    for panel in shown:
        write(figure, left, top + 0.04, panel.heading, fontsize=HEADING, fontweight="bold")
        draw_names(figure, panel, left + width, top + 0.04)
        axes = add_axes(figure, left, top + HEAD_INCHES, width, height - HEAD_INCHES)
        draw_panel(axes, panel, {tuned_place(report): 10})
        draw_scale(axes, ratios, width)
        top += height + GAP_INCHES
    axes.set_xlabel("update ratio", fontsize=BODY, color=INK, labelpad=8)


def draw_names(figure: Figure, panel: Panel, right: float, top: float) -> None:
    """The lines' names in their colours, in their order, ending at `right`."""
    for line in reversed(panel.lines):
        text = f"{chr(0x25CB) if line.apart else chr(0x25CF)} {line.name}"
        write(figure, right, top, text, fontsize=SMALL, color=line.colour, ha="right")
        right -= LETTER_INCHES * len(text) + 0.2


def draw_panel(axes: Axes, panel: Panel, size_at: Mapping[int, float]) -> None:
    """Lines and limit over the places of the ratios; `size_at` has the places with circles of another size."""
    values = [value for line in panel.lines for value in line.values if value is not None]
    low, high = min(0.0, *values), max(LEAST_SHOWN, panel.limit or 0.0, *values)
    axes.set_ylim(low - 0.08 * (high - low) if low < 0 else 0.0, high + 0.12 * (high - low))
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.locator_params(axis="y", nbins=4)
    for line in panel.lines:
        draw_line(axes, line, size_at)
    if panel.limit is not None:
        axes.axhline(panel.limit, color=INK, linewidth=1)
        name, edge = f"budget\n{number_text(panel.limit)}", axes.get_yaxis_transform()
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL, "color": INK, "va": "center"}
        axes.annotate(name, (1, panel.limit), xytext=(5, 0), xycoords=edge, **style)


def draw_line(axes: Axes, line: Line, size_at: Mapping[int, float]) -> None:
    """One mean; circles are hollow and the line dashed if it was measured on other data than the report."""
    found = [(place, value) for place, value in enumerate(line.values) if value is not None]
    xs, ys = zip(*found, strict=True) if found else ((), ())
    dashes = DASHES if line.apart else "-"
    axes.plot(xs, ys, color=line.colour, linewidth=2, linestyle=dashes, alpha=0.6, zorder=3)
    for point in found:
        size = size_at.get(point[0], 5.0) + (APART if line.apart else 0.0)
        draw_circle(axes, point, line.colour, not line.apart, size)


def draw_scale(axes: Axes, ratios: Sequence[float], width: float) -> None:
    """Ratios at equal distances; where their names would touch only every second, third ... from the last."""
    texts = [number_text(ratio) for ratio in ratios]
    room = width / max(len(ratios), 1)
    every = next(
        step for step in range(1, len(texts) + 1) if longest(texts[::-step]) < room * step or step == len(texts)
    )
    places = range(len(texts))[::-every]
    axes.set_xlim(-0.5, len(texts) - 0.5)
    axes.set_xticks(list(places), [texts[place] for place in places])


def longest(texts: Sequence[str]) -> float:
    """Inches that the longest takes, with a space."""
    return LETTER_INCHES * (max(map(len, texts)) + 1)


PLANE_LEFT, PLANE_TOP, PLANE_WIDTH, PLANE_HEIGHT, FOOT = 1.25, TOP + 0.55, 5.2, 4.25, 6.88
PANELS_LEFT = 7.55
LONGEST_SUBTITLE, LONGEST_NOTE = 120, 160
H_NOTE = "H-score: the harmonic mean of both means, high only if both are."
RING_NOTE = "Ring: the knee, farthest above the dashed line from the base model to the trained ratio."


def plot_curve(report: Report, path: str | Path, dark: bool = False) -> None:
    """Write the picture of a run's curve, atomically; the suffix decides the format.

    Raises:
        DowserError: the run has no curve, or the suffix is not .png, .pdf or .svg.
    """
    save_page(draw_curve_page(report), path, dark)


def has_picture(report: Report) -> bool:
    """Whether there is a curve, of at least one task."""
    return bool(report.curve and report.tasks)


def draw_curve_page(report: Report) -> Figure:
    """The plane at the left if there are tasks of both roles, the means over the ratio at the right."""
    if not has_picture(report):
        raise DowserError(
            "The run has no curve to draw: it was not measured at several update ratios, or on no task. Its report "
            "has no points under 'curve'."
        )
    both = report.h_score.after is not None
    figure = new_page(curve_headline(report), settings_line(report, LONGEST_SUBTITLE))
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
    if report.h_score.after is not None:
        found.append((H_NOTE, MUTED))
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
