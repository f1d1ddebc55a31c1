"""The trade-off plane: downstream to the right, upstream upwards, curves of equal H-score.

Beside it a list says what each numbered circle is. Of circles that would cover each other some move aside, and a thin
line leads to where they belong. Where the plane is cut to the part where the points lie, a small one shows the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dowser_pl.reporting.plots.labels import Label, Point, draw_labels, on_page, spread_out
from dowser_pl.reporting.plots.style import (
    BODY,
    DASHES,
    FAINT,
    GAIN,
    INK,
    KNEE,
    MUTED,
    PAPER,
    SMALL,
    draw_circle,
    draw_ring,
    write,
)
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.scores import h_score
from dowser_pl.reporting.table import marks, number_text, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Span = tuple[float, float]  # from, to
NUM_CURVE_POINTS = 200
SMALL_PART, INSET = 0.55, 0.2  # a part of the plane that needs the whole beside it; size of that, as a share
CURVE_STEPS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def axis_end(values: list[float]) -> float:
    """1, or a tenth more than the largest value where a mean exceeds 1 (CIDEr)."""
    return max(1.0, 1.1 * max(values)) if max(values) > 1 else 1.0


def draw_plane(axes: Axes, points: Sequence[Point], cut: bool = True) -> None:
    """The plane of points (downstream mean, upstream mean).

    Args:
        axes: to draw on.
        points: that it shall have room for.
        cut: show only the part where the points lie, and a small plane with where that is in the whole.
    """
    across, up = [point[0] for point in points], [point[1] for point in points]
    if not cut:
        draw_part(axes, (0.0, axis_end(across)), (0.0, axis_end(up)))
        return
    draw_part(axes, part_of(across), part_of(up))
    draw_whole(axes, points)


def draw_part(axes: Axes, downstream: Span, upstream: Span, bare: bool = False) -> None:
    """Axes, titles and curves of equal H-score in one part of the plane; a bare one has no titles and few numbers."""
    axes.set_xlim(*downstream)
    axes.set_ylim(*upstream)
    if bare:
        axes.locator_params(nbins=3)
        axes.tick_params(pad=3, labelsize=SMALL - 2)
    else:
        axes.set_xlabel("downstream mean (learnt)", fontsize=BODY, color=INK, labelpad=8)
        axes.set_ylabel("upstream mean (kept)", fontsize=BODY, color=INK, labelpad=8)
        axes.tick_params(pad=9)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(True)
        axes.spines[side].set_color(MUTED)
    lowest, best = (h_score(up, right) for right, up in zip(downstream, upstream, strict=True))
    step = curve_step(best - lowest)
    for number in range(math.floor(lowest / step) + 1, math.ceil(best / step)):
        draw_curve(axes, round(number * step, 2), downstream, upstream, not bare)


def curve_step(width: float) -> float:
    """Distance of the curves: the first of 0.02, 0.05, 0.1, 0.2, 0.5 ... that leaves at most four or five of them."""
    return next((step for step in CURVE_STEPS if width <= 5 * step * (1 + 1e-9)), width / 4)


def draw_whole(axes: Axes, points: Sequence[Point]) -> None:
    """A small plane in the lower left corner with all of it, the points, and a frame around the part of `axes`.

    Nothing is drawn where the part is more than half of the plane in both directions, or points lie in that corner.
    """
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    if min(right - left, top - bottom) > SMALL_PART or any(
        (x - left) / (right - left) < INSET + 0.12 and (y - bottom) / (top - bottom) < INSET + 0.12 for x, y in points
    ):
        return
    whole = axes.inset_axes((0.07, 0.08, INSET, INSET))
    ends = [axis_end([point[axis] for point in points]) for axis in (0, 1)]
    whole.set(xlim=(0, ends[0]), ylim=(0, ends[1]), xticks=[0, ends[0]], yticks=[ends[1]], facecolor=PAPER)
    whole.set_xticklabels(["0", f"{ends[0]:g}"])
    whole.tick_params(colors=MUTED, labelsize=SMALL - 2, length=0, pad=2)
    for spine in whole.spines.values():
        spine.set_color(FAINT)
    xs, ys = zip(*points, strict=True)
    whole.plot(xs, ys, linestyle="none", marker="o", markersize=2.5, color=MUTED)
    corners = [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
    whole.plot(*zip(*corners, strict=True), color=INK, linewidth=1, clip_on=False)


def draw_curve(axes: Axes, level: float, downstream: Span, upstream: Span, named: bool = True) -> None:
    """Draw the points whose H-score is `level`, y = level x / (2 x - level), labelled where they leave the part."""
    (left, right), (bottom, top) = downstream, upstream
    first = level * top / (2 * top - level)
    start = max(first, left)
    xs = [start + (right - start) * i / (NUM_CURVE_POINTS - 1) for i in range(NUM_CURVE_POINTS)]
    ys = [level * x / (2 * x - level) for x in xs]
    axes.plot(xs, ys, color=FAINT, linewidth=1.3, zorder=1)
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL, "color": MUTED}
    if not named:
        return
    if first >= left:
        axes.annotate(f"H {level:g}", (first, top), xytext=(0, 5), ha="center", **style)
    elif ys[-1] >= bottom:
        axes.annotate(f"H {level:g}", (right, ys[-1]), xytext=(5, 0), va="center", **style)


def draw_move(axes: Axes, before: Point, after: Point, colour: str, alpha: float = 1.0) -> None:
    """An arrow from the base model to the tuned one; none if it did not move."""
    if before == after:
        return
    arrow = {
        "arrowstyle": "-|>,head_width=0.32,head_length=0.65",
        "color": colour,
        "alpha": alpha,
        "linewidth": 2,
        "shrinkA": 7,
        "shrinkB": 9,
    }
    axes.annotate("", after, before, arrowprops=arrow, zorder=3)


class Numbered(NamedTuple):
    """A circle with a number inside."""

    point: Point
    number: str
    colour: str
    filled: bool = True


def draw_numbered(axes: Axes, circles: Sequence[Numbered], size: float = 15) -> None:
    """All circles, each at its point or, where that is taken by an earlier one, beside it with a line to its point.

    The limits of the axes must be set.
    """
    places = [on_page(axes, circle.point) for circle in circles]
    found = spread_out(places, size + 2.5)
    style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": SMALL, "zorder": 6}
    scale = axes.figure.dpi / 72
    for circle, own, place in zip(circles, places, found, strict=True):
        x, y = axes.transData.inverted().transform((scale * place[0], scale * place[1]))
        if own != place:
            axes.plot(
                [circle.point[0], x], [circle.point[1], y], color=circle.colour, linewidth=1, clip_on=False, zorder=3
            )
            axes.plot(*circle.point, marker="o", markersize=3.5, color=circle.colour, clip_on=False, zorder=3.8)
        draw_circle(axes, (x, y), circle.colour, circle.filled, size)
        colour = PAPER if circle.filled else circle.colour
        axes.annotate(circle.number, (x, y), color=colour, fontweight="bold", annotation_clip=False, **style)


LONGEST_TITLE, LONGEST_DETAILS = 22, 60


class Entry(NamedTuple):
    """One line: the number and colour of its circle, name, settings in small letters, one cell per column."""

    number: str
    colour: str
    name: str
    details: str
    cells: Sequence[str]


def draw_list(
    figure: Figure,
    left: float,
    top: float,
    columns: Mapping[str, float],
    entries: Sequence[Entry],
    line_inches: float,
    cell_size: float = BODY,
) -> None:
    """Draw all entries below the names of the columns, in inches.

    Args:
        figure: to draw on.
        left: where the numbers start.
        top: baseline of the column names; the first entry stands one line below.
        columns: name -> right end.
        entries: from top to bottom.
        line_inches: from one entry to the next.
        cell_size: of the scores, in points.
    """
    for name, right in columns.items():
        write(figure, right, top, name, ha="right", fontsize=SMALL, color=MUTED)
    for entry in entries:
        top += line_inches
        write(figure, left, top, entry.number, fontweight="bold", color=entry.colour)
        write(figure, left + 0.36, top, shorten(entry.name, LONGEST_TITLE), fontweight="bold")
        write(figure, left + 0.36, top + 0.18, shorten(entry.details, LONGEST_DETAILS), fontsize=SMALL, color=MUTED)
        for right, cell in zip(columns.values(), entry.cells, strict=True):
            write(figure, right, top, cell, ha="right", fontsize=cell_size)


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


def part_of(values: Sequence[float]) -> Span:
    """The round part of an axis around values: never below 0, not above 1 unless a value is (CIDEr)."""
    low, high = min(values), max(values)
    room = max(ROOM * (high - low), (NARROWEST * max(high, 1) - (high - low)) / 2)
    step = next((step for step in STEPS if high - low + 2 * room <= 6 * step), STEPS[-1])
    start, end = math.floor((low - room) / step) * step, math.ceil((high + room) / step) * step
    return max(start, 0.0), end if high > 1 else min(end, 1.0)
