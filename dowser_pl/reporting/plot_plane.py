"""The trade-off plane: downstream to the right, upstream upwards, curves of equal H-score."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dowser_pl.reporting.plot_style import BODY, FAINT, INK, MUTED, SMALL, draw_circle
from dowser_pl.reporting.trade_off import h_score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]  # (downstream mean, upstream mean)
NUM_CURVE_POINTS = 200


def axis_end(values: list[float]) -> float:
    """1, or a tenth more than the largest value where a mean exceeds 1 (CIDEr)."""
    return max(1.0, 1.1 * max(values)) if max(values) > 1 else 1.0


def draw_plane(axes: Axes, points: list[Point]) -> None:
    """Axes, titles and curves of equal H-score, wide enough for the points."""
    right, top = (axis_end([point[axis] for point in points]) for axis in (0, 1))
    draw_axes(axes, right, top)
    best = h_score(top, right)
    step = curve_step(best)
    for number in range(1, math.ceil(best / step)):
        draw_curve(axes, number * step, right, top)


def draw_axes(axes: Axes, right: float, top: float) -> None:
    """Axes from 0 and their titles."""
    axes.set_xlim(0, right)
    axes.set_ylim(0, top)
    axes.set_xlabel("downstream mean (learnt)", fontsize=BODY, color=INK, labelpad=8)
    axes.set_ylabel("upstream mean (kept)", fontsize=BODY, color=INK, labelpad=8)
    axes.tick_params(pad=9)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(True)
        axes.spines[side].set_color(MUTED)


def curve_step(best: float) -> float:
    """Distance of the curves: the first of 0.2, 0.5, 1, 2, 5 that leaves at most four of them."""
    return next((step for step in (0.2, 0.5, 1.0, 2.0, 5.0) if best <= 5 * step), best / 4)


def draw_curve(axes: Axes, level: float, right: float, top: float) -> None:
    """All points whose H-score is `level`: y = level x / (2 x - level), labelled at its upper end."""
    first = level * top / (2 * top - level)
    xs = [first + (right - first) * i / (NUM_CURVE_POINTS - 1) for i in range(NUM_CURVE_POINTS)]
    axes.plot(xs, [level * x / (2 * x - level) for x in xs], color=FAINT, linewidth=1.3, zorder=1)
    place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": SMALL, "color": MUTED}
    axes.annotate(f"H {level:g}", (first, top), xytext=(0, 5), **place)


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
