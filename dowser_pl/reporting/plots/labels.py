"""Labels and circles in places where points are close together: none covers another.

All places on the page are in points of 1/72 inch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from dowser_pl.reporting.plots.style import INK, MUTED, SMALL, halo

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]

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
    """A rectangle on the page."""

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

    def place_of(point: Point) -> Point:
        return on_page(axes, point)

    places = [place_of(label.point) for label in labels]
    page = Box(*(72 / axes.figure.dpi * edge for edge in axes.bbox.extents))
    taken = [Box.around(x, y, label.radius, label.radius) for label, (x, y) in zip(labels, places, strict=True)]
    path = [sample for line in lines for pair in pairwise(map(place_of, line)) for sample in between(*pair)]
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
            path_effects=halo(),
            zorder=6,
        )


def on_page(axes: Axes, point: Point) -> Point:
    """Where a point of the axes, whose limits are set, lies on the page."""
    x, y = 72 / axes.figure.dpi * axes.transData.transform(point)
    return float(x), float(y)


def spread_out(places: Sequence[Point], distance: float) -> list[Point]:
    """Places of circles that do not cover each other, each as near to its own as it can be; the first ones stay.

    Args:
        places: where the circles belong.
        distance: between the centres of two, at least.
    """
    found: list[Point] = []
    for x, y in places:
        around = (
            (x + math.cos(turn) * radius, y + math.sin(turn) * radius)
            for radius in (distance * step / 4 for step in range(4 * len(places) + 4))
            for turn in (BEST_DIRECTION + 2 * math.pi * step / NUM_DIRECTIONS for step in range(NUM_DIRECTIONS))
        )
        found.append(next(place for place in around if all(math.dist(place, other) >= distance for other in found)))
    return found


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
