"""The trade-off plane: downstream to the right, upstream upwards, curves of equal H-score.

Beside it a list says what each numbered circle is. Short labels lie beside points that may be close together: no label
covers another, a point or the path of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from dowser_pl.reporting.plots.style import (
    BODY,
    DASHES,
    FAINT,
    GAIN,
    INK,
    KNEE,
    MUTED,
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

Point = tuple[float, float]  # (downstream mean, upstream mean)
Span = tuple[float, float]  # from, to
NUM_CURVE_POINTS = 200
CURVE_STEPS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def axis_end(values: list[float]) -> float:
    """1, or a tenth more than the largest value where a mean exceeds 1 (CIDEr)."""
    return max(1.0, 1.1 * max(values)) if max(values) > 1 else 1.0


def draw_plane(axes: Axes, points: list[Point]) -> None:
    """The whole plane, wide enough for the points."""
    right, top = (axis_end([point[axis] for point in points]) for axis in (0, 1))
    draw_part(axes, (0.0, right), (0.0, top))


def draw_part(axes: Axes, downstream: Span, upstream: Span) -> None:
    """Axes, titles and curves of equal H-score in one part of the plane."""
    axes.set_xlim(*downstream)
    axes.set_ylim(*upstream)
    axes.set_xlabel("downstream mean (learnt)", fontsize=BODY, color=INK, labelpad=8)
    axes.set_ylabel("upstream mean (kept)", fontsize=BODY, color=INK, labelpad=8)
    axes.tick_params(pad=9)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(True)
        axes.spines[side].set_color(MUTED)
    lowest, best = (h_score(up, right) for right, up in zip(downstream, upstream, strict=True))
    step = curve_step(best - lowest)
    for number in range(math.floor(lowest / step) + 1, math.ceil(best / step)):
        draw_curve(axes, round(number * step, 2), downstream, upstream)


def curve_step(width: float) -> float:
    """Distance of the curves: the first of 0.02, 0.05, 0.1, 0.2, 0.5 ... that leaves at most four or five of them."""
    return next((step for step in CURVE_STEPS if width <= 5 * step * (1 + 1e-9)), width / 4)


def draw_curve(axes: Axes, level: float, downstream: Span, upstream: Span) -> None:
    """All points whose H-score is `level`, y = level x / (2 x - level), labelled where the curve leaves the part."""
    (left, right), (bottom, top) = downstream, upstream
    first = level * top / (2 * top - level)
    start = max(first, left)
    xs = [start + (right - start) * i / (NUM_CURVE_POINTS - 1) for i in range(NUM_CURVE_POINTS)]
    ys = [level * x / (2 * x - level) for x in xs]
    axes.plot(xs, ys, color=FAINT, linewidth=1.3, zorder=1)
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL, "color": MUTED}
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


def draw_numbered(axes: Axes, point: Point, number: str, colour: str, filled: bool = True, size: float = 15) -> None:
    """A circle with a number inside; the later of two in one place hides the earlier."""
    draw_circle(axes, point, colour, filled, size)
    style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": SMALL, "zorder": 5}
    axes.annotate(number, point, color="white" if filled else colour, fontweight="bold", **style)


if TYPE_CHECKING:
    from matplotlib.axes import Axes

LETTER, LINE = 0.68, 1.25  # of the font size: widest digit of the bold font with room, height of a line
GAPS = (3.0, 8.0, 14.0, 22.0, 32.0, 44.0, 58.0, 74.0)  # points between the circle of a point and its label
NUM_DIRECTIONS = 24
BEST_DIRECTION = math.pi / 4  # up and right: on the plane, outside of a curve that bends
LEADER_FROM = 14.0  # gap from which a thin line tells whose label it is


class Label(NamedTuple):
    """Text for a point of the axes, with the radius of its circle in points; what matters is bold and placed first."""

    point: Point
    text: str
    matters: bool
    radius: float


class Box(NamedTuple):
    """A rectangle on the page, in points of 1/72 inch."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, x: float, y: float, half_width: float, half_height: float) -> Box:
        """The rectangle with this centre."""
        return cls(x - half_width, y - half_height, x + half_width, y + half_height)

    def meets(self, other: Box) -> bool:
        """Whether they share more than an edge."""
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top

    def inside(self, other: Box) -> bool:
        """Whether it lies within the other."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.bottom <= self.bottom and self.top <= other.top


def draw_labels(axes: Axes, labels: Sequence[Label], lines: Sequence[Sequence[Point]]) -> None:
    """Write each label near its point, so that none covers another, a point or, where it can be, a line.

    The limits of the axes must be set. Where a place near the point is taken, the label moves away and a thin line
    leads to it.

    Args:
        axes: to write on.
        labels: with their points.
        lines: each through its points, on the same axes.
    """
    from matplotlib.patheffects import withStroke  # noqa: PLC0415 - as everything of matplotlib, only for a picture

    scale = 72 / axes.figure.dpi

    def on_page(point: Point) -> Point:
        x, y = scale * axes.transData.transform(point)
        return float(x), float(y)

    places = [on_page(label.point) for label in labels]
    page = Box(*(scale * edge for edge in axes.bbox.extents))
    taken = [Box.around(x, y, label.radius, label.radius) for label, (x, y) in zip(labels, places, strict=True)]
    path = [sample for line in lines for pair in pairwise(map(on_page, line)) for sample in between(*pair)]
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for number in sorted(range(len(labels)), key=lambda number: not labels[number].matters):
        label, (x, y) = labels[number], places[number]
        half = (LETTER * SMALL * len(label.text) / 2, LINE * SMALL / 2)
        box, gap = best_place((x, y), label.radius, half, taken, path, page)
        taken.append(box)
        centre = ((box.left + box.right) / 2 - x, (box.bottom + box.top) / 2 - y)
        leader = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 6}
        axes.annotate(
            label.text,
            label.point,
            xytext=centre,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=SMALL,
            color=INK if label.matters else MUTED,
            fontweight="bold" if label.matters else "normal",
            arrowprops=leader if gap >= LEADER_FROM else None,
            path_effects=halo,
            zorder=6,
        )


def best_place(
    anchor: Point,
    radius: float,
    half: Point,
    taken: Sequence[Box],
    path: Sequence[Point],
    page: Box,
) -> tuple[Box, float]:
    """The place of one label with least in its way, and its distance from the circle.

    Args:
        anchor: the point.
        radius: of its circle.
        half: half the width and height of the label.
        taken: what no label may cover.
        path: points of the lines that it should not cover.
        page: where labels belong.
    """
    best, least = None, math.inf
    for gap in GAPS:
        for step in range(NUM_DIRECTIONS):
            turn = 2 * math.pi * step / NUM_DIRECTIONS
            x = anchor[0] + math.cos(BEST_DIRECTION + turn) * (radius + gap + half[0])
            y = anchor[1] + math.sin(BEST_DIRECTION + turn) * (radius + gap + half[1])
            box = Box.around(x, y, *half)
            cost = gap + 6 * (1 - math.cos(turn)) + 1000 * sum(box.meets(other) for other in taken)
            cost += 60 * any(box.left < px < box.right and box.bottom < py < box.top for px, py in path)
            cost += 0 if box.inside(page) else 200
            if cost < least:
                best, least = (box, gap), cost
    assert best is not None
    return best


def between(start: Point, end: Point) -> list[Point]:
    """Points along a line, close enough that no label fits between two of them."""
    num = max(int(math.dist(start, end) / 3), 1)
    return [(start[0] + (end[0] - start[0]) * i / num, start[1] + (end[1] - start[1]) * i / num) for i in range(num)]


if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
