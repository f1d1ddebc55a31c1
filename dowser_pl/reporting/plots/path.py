"""The path of one run through the trade-off plane, from the base model to the trained ratio."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dowser_pl.reporting.curve_table import marks
from dowser_pl.reporting.plots.labels import Label, draw_labels
from dowser_pl.reporting.plots.plane import Span, draw_part
from dowser_pl.reporting.plots.style import DASHES, GAIN, KNEE, MUTED, draw_circle, draw_ring
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.wording import number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
RING = 9  # the ring of a knee is so much wider than its circle, in points
NARROWEST, ROOM = 0.1, 0.1  # a part of the plane is at least this wide; free at each side, as a share


def draw_path(axes: Axes, report: Report) -> None:
    """Line and points, the knee ringed above its chord, the tuned model as a large circle.

    The plane is cut to the part where the path lies: what is lost is small beside what is learnt.
    """
    means = report.curve_means
    points = [(mean.downstream or 0.0, mean.upstream or 0.0) for mean in means]
    xs, ys = zip(*points, strict=True)
    draw_part(axes, part_of(xs), part_of(ys))
    axes.plot(xs, ys, color=GAIN, linewidth=2, alpha=0.6, zorder=3)
    labels, lines, end = [], [points], tuned_place(report)
    for place, (mean, point) in enumerate(zip(means, points, strict=True)):
        names = marks(report, mean.update_ratio)
        colour, filled, size = circle(place, end)
        draw_circle(axes, point, colour, filled, size)
        if "knee" in names:
            lines.append([points[0], points[-1]])
            axes.plot(*zip(*lines[-1], strict=True), color=KNEE, linewidth=1.2, linestyle=DASHES, zorder=2)
            draw_ring(axes, point, size + RING)
            size += RING
        text = ", ".join(names) + (f" {number_text(mean.update_ratio)}" if place else "")
        labels.append(Label(point, text.strip(), bool(names) or place == end, size / 2))
    draw_labels(axes, labels, lines)


def tuned_place(report: Report) -> int:
    """Which point of the curve is the model that the report calls "after"."""
    ratios = [point.update_ratio for point in report.curve]
    chosen = None if report.budget is None else report.budget.update_ratio
    return ratios.index(chosen) if chosen in ratios else len(ratios) - 1


def circle(place: int, end: int) -> tuple[str, bool, float]:
    """Colour, whether full, and size: hollow for the base model, large for the tuned one."""
    if place == 0:
        return MUTED, False, 12
    return GAIN, True, 13 if place == end else 6


def part_of(values: tuple[float, ...]) -> Span:
    """The round part of an axis around values: never below 0, not above 1 unless a value is (CIDEr)."""
    low, high = min(values), max(values)
    room = max(ROOM * (high - low), (NARROWEST * max(high, 1) - (high - low)) / 2)
    step = next((step for step in STEPS if high - low + 2 * room <= 6 * step), STEPS[-1])
    start, end = math.floor((low - room) / step) * step, math.ceil((high + room) / step) * step
    return max(start, 0.0), end if high > 1 else min(end, 1.0)
