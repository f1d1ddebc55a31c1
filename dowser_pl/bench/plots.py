"""The pictures of a bench: trade-offs on one plane, and the H-score over the number of tuned decoder layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dowser_pl.bench.cells import setting_text
from dowser_pl.bench.results import Comparison, MethodResult, Spread, spread_text
from dowser_pl.reporting.plots.plane import Entry, Point, axis_end, draw_list, draw_numbered, draw_part
from dowser_pl.reporting.plots.style import (
    BODY,
    FAINT,
    INK,
    MARGIN,
    RUN_COLOURS,
    SMALL,
    add_axes,
    new_page,
    save_page,
    write,
)
from dowser_pl.reporting.scores import h_score
from dowser_pl.reporting.table import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, TOP = 15.0, 1.45
PLANE_LEFT, PLANE_SIZE = 1.25, 6.6
LIST_LEFT, LINE_INCHES = 8.75, 0.44
COLUMNS = {"downstream": 12.2, "upstream": 13.4, "H": 14.6}
CLOSE = 0.75  # settings below this share of the best H-score may lie outside the picture
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # colours repeat after eight methods
SUBTITLE_TEXT = (
    "curves: every setting tried, validation split; full circles: the chosen ones; list: test split, best H-score first"
)


def plot_trade_off(comparison: Comparison, path: Path) -> None:
    """Write the picture of one group, atomically; the suffix decides the format."""
    save_page(draw_trade_off(comparison), path)


def draw_trade_off(comparison: Comparison) -> Figure:
    """Curves over the grids at the left, the methods and their test scores at the right."""
    methods = [method for method in comparison.methods if _points(method)]
    height = TOP + max(PLANE_SIZE + 1.0, LINE_INCHES * (len(methods) + 1) + MARGIN)
    title = f"What each method learns and keeps: {comparison.group.text}"
    figure = new_page(title, SUBTITLE_TEXT, height, WIDTH)
    axes = add_axes(figure, PLANE_LEFT, TOP + 0.1, PLANE_SIZE, PLANE_SIZE)
    _draw_plane(axes, [point for method in methods for point in _points(method)])
    for number, method in reversed(list(enumerate(methods, 1))):  # of two in one place the better is seen
        _draw_curve(axes, number, method)
    entries = [_entry(number, method) for number, method in enumerate(methods, 1)]
    draw_list(figure, LIST_LEFT, TOP + 0.1, COLUMNS, entries, LINE_INCHES, SMALL)
    return figure


def colour(number: int) -> str:
    """Of the nth method."""
    return RUN_COLOURS[(number - 1) % len(RUN_COLOURS)]


def dashes(number: int) -> str | tuple[int, Sequence[float]]:
    """The line of the nth method."""
    return DASHES[(number - 1) // len(RUN_COLOURS) % len(DASHES)]


def _points(method: MethodResult) -> list[tuple[bool, Point]]:
    """(chosen, (downstream, upstream)) of every setting that finished, in the order of the grid."""
    chosen = None if method.choice is None else method.choice.setting
    return [
        (point.cell.setting == chosen, (point.record.mean("downstream"), point.record.mean("upstream")))
        for point in method.curve
        if point.record is not None
    ]


def _draw_plane(axes: Axes, points: Sequence[tuple[bool, Point]]) -> None:
    """The part of the plane where the chosen settings lie, and others that are not much worse than the best."""
    enough = CLOSE * max((h_score(up, down) for _, (down, up) in points), default=0.0)
    shown = [point for chosen, point in points if chosen or h_score(point[1], point[0]) >= enough] or [(0.0, 0.0)]
    lows = [max(0.0, math.floor(10 * (min(point[axis] for point in shown) - 0.02)) / 10) for axis in (0, 1)]
    right, top = (axis_end([point[axis] for point in shown]) for axis in (0, 1))
    draw_part(axes, (lows[0], right), (lows[1], top))


def _draw_curve(axes: Axes, number: int, method: MethodResult) -> None:
    """A line through the settings in the order of the grid; after another method one for each learning rate."""
    runs: dict[float | None, list[Point]] = {}
    for point in method.curve:
        if point.record is not None:
            key = point.cell.rate if method.entry.after is not None else None
            runs.setdefault(key, []).append((point.record.mean("downstream"), point.record.mean("upstream")))
    for line in runs.values():
        xs, ys = zip(*line, strict=True)
        style = dashes(number)
        axes.plot(xs, ys, color=colour(number), linewidth=1.4, linestyle=style, marker=".", alpha=0.75, zorder=2)
    for chosen, place in _points(method):
        if chosen:
            draw_numbered(axes, place, str(number), colour(number))


def _entry(number: int, method: MethodResult) -> Entry:
    setting = "" if method.choice is None else setting_text(method.choice.setting)
    cells = [""] * len(COLUMNS)
    if method.records:
        cells = [spread_text(spread) for spread in (method.downstream, method.upstream, method.h_score)]
    return Entry(str(number), colour(number), method.entry.name, shorten(setting, 36), cells)


if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP, PANEL_WIDTH, PANEL_HEIGHT, GAP = 1.6, 8.4, 4.4, 1.3


def plot_depths(comparisons: Sequence[Comparison], path: Path) -> None:
    """Write the picture, atomically: one panel for each world and task, one line for each method."""
    save_page(draw_depths(comparisons), path)


def draw_depths(comparisons: Sequence[Comparison]) -> Figure:
    """Panels below each other; all layers stand at the right."""
    panels: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        panels.setdefault((comparison.group.world, comparison.group.task), []).append(comparison)
    subtitle = "test split, mean and standard deviation over seeds, each method at its best setting for each depth"
    height = TOP + len(panels) * (PANEL_HEIGHT + GAP)
    figure = new_page("H-score and the number of tuned decoder layers", subtitle, height)
    for row, ((world, task), panel) in enumerate(panels.items()):
        _draw_panel(figure, TOP + row * (PANEL_HEIGHT + GAP), f"{world}, {task}", panel)
    return figure


def _draw_panel(figure: Figure, top: float, title: str, panel: Sequence[Comparison]) -> None:
    write(figure, MARGIN + 0.75, top - 0.15, title, fontweight="bold")
    axes = add_axes(figure, MARGIN + 0.75, top, PANEL_WIDTH, PANEL_HEIGHT)
    ordered = sorted(panel, key=lambda each: float("inf") if each.group.depth is None else each.group.depth)
    axes.set_xticks(range(len(ordered)), [str(each.group.depth or "all") for each in ordered])
    axes.set_xlabel("last decoder layers that are tuned", fontsize=BODY, color=INK, labelpad=8)
    axes.set_ylabel("H-score", fontsize=BODY, color=INK, labelpad=8)
    axes.grid(axis="y", color=FAINT)
    for number, name in enumerate((method.entry.name for method in panel[0].methods), 1):
        found = _scores(ordered, name)
        if not found:
            continue
        places, spreads = list(found), list(found.values())
        means, errors = [each.mean for each in spreads], [each.std or 0.0 for each in spreads]
        style = {"color": colour(number), "linestyle": dashes(number), "label": name}
        axes.errorbar(places, means, yerr=errors, marker="o", capsize=3, linewidth=1.6, **style)  # type: ignore[arg-type]
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=BODY)


def _scores(ordered: Sequence[Comparison], name: str) -> dict[int, Spread]:
    """Place on the axis -> H-score of one method."""
    return {
        place: method.h_score
        for place, comparison in enumerate(ordered)
        for method in comparison.methods
        if method.entry.name == name and method.records
    }
