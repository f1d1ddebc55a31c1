"""The trade-off plane: downstream to the right, upstream upwards, curves of equal H-score."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dowser_pl.reporting.plots.style import BODY, FAINT, INK, MUTED, SMALL, draw_circle
from dowser_pl.reporting.trade_off import h_score

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
