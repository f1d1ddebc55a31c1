"""Pictures of a bench with one panel for each method, in which all others are grey: all tried settings, and depths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dowser_pl.bench.cells import setting_text
from dowser_pl.bench.results import Comparison, MethodResult, Spread
from dowser_pl.reporting.plots.labels import Point
from dowser_pl.reporting.plots.plane import draw_part, part_of
from dowser_pl.reporting.plots.style import (
    BODY,
    FAINT,
    GAIN,
    INK,
    LOSS,
    MARGIN,
    MUTED,
    SMALL,
    WIDTH,
    add_axes,
    draw_circle,
    draw_ring,
    new_page,
    save_page,
    write,
)
from dowser_pl.reporting.scores import h_score
from dowser_pl.reporting.table import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOP, FOOT = 1.4, 0.6
FEW, ACROSS = 10, (5, 6)  # up to ten panels five stand beside each other, of more six
GAP, HEAD, PANEL_HEIGHT = 0.45, 0.5, 1.33
LONGEST_NAME, LONGEST_SETTING = 18, 30
CLOSE = 0.75  # settings below this share of the best H-score may lie outside the picture
TRIED_TEXT = (
    "every setting tried, in the order of the grid, on the validation split; ring: the chosen one; grey: those of the "
    "other methods"
)
DEPTHS_TEXT = (
    "test split, mean and standard deviation over seeds, each method at its best setting for each depth; grey: the "
    "other methods"
)
H_TEXT = "H-score: harmonic mean of downstream and upstream mean, high only if both are."


def method_colour(method: MethodResult) -> str:
    """Blue; vermilion where the method decides after the training of another."""
    return GAIN if method.entry.after is None else LOSS


def panels(figure: Figure, number: int, top: float) -> Iterator[Axes]:
    """So many axes of one size, from left to right and from top to bottom, in inches from `top`."""
    across = ACROSS[number > FEW]
    width = (WIDTH - 2 * MARGIN - 0.2 - (across - 1) * GAP) / across
    for place in range(number):
        line, column = divmod(place, across)
        left = MARGIN + 0.3 + column * (width + GAP)
        yield add_axes(figure, left, top + line * (HEAD + PANEL_HEIGHT) + HEAD, width - 0.1, PANEL_HEIGHT - 0.25)


def page_height(number: int) -> float:
    """The height of a page with so many panels, in inches."""
    return TOP + math.ceil(max(number, 1) / ACROSS[number > FEW]) * (HEAD + PANEL_HEIGHT) + FOOT


def head(axes: Axes, name: str, aside: str) -> None:
    """What a panel shows, above it."""
    style: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(name, (0, 1), xytext=(0, 17), fontsize=BODY, fontweight="bold", color=INK, **style)
    axes.annotate(aside, (0, 1), xytext=(0, 6), fontsize=SMALL - 1.5, color=MUTED, **style)


def plot_tried(comparison: Comparison, path: Path) -> None:
    """Write the picture of what was tried in one group, atomically; the suffix decides the format."""
    save_page(draw_tried(comparison), path)


def draw_tried(comparison: Comparison) -> Figure:
    """One part of the trade-off plane for each method, the same for all."""
    methods = [method for method in comparison.methods if points(method)]
    figure = new_page(f"What each method tried: {comparison.group.text}", TRIED_TEXT, page_height(len(methods)))
    chosen = [point for method in methods for is_chosen, point in points(method) if is_chosen]
    spans = shown_part([each for method in methods for each in points(method)])
    for method, axes in zip(methods, panels(figure, len(methods), TOP), strict=True):
        draw_part(axes, *spans, bare=True)
        if chosen:
            axes.plot(*zip(*chosen, strict=True), linestyle="none", marker="o", markersize=3, color=FAINT, zorder=2)
        draw_lines(axes, method)
        setting = "nothing chosen" if method.choice is None else setting_text(method.choice.setting)
        head(axes, shorten(method.entry.name, LONGEST_NAME), shorten(setting, LONGEST_SETTING))
    foot = f"across: downstream mean (learnt); upwards: upstream mean (kept); grey lines: equal H-score. {H_TEXT}"
    write(figure, MARGIN, page_height(len(methods)) - 0.25, foot, fontsize=SMALL, color=MUTED)
    return figure


def points(method: MethodResult) -> list[tuple[bool, Point]]:
    """(chosen, (downstream, upstream)) of every setting that finished, in the order of the grid."""
    chosen = None if method.choice is None else method.choice.setting
    return [
        (point.cell.setting == chosen, (point.record.mean("downstream"), point.record.mean("upstream")))
        for point in method.curve
        if point.record is not None
    ]


def shown_part(found: Sequence[tuple[bool, Point]]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The part of the plane where the chosen settings lie, and others that are not much worse than the best."""
    enough = CLOSE * max((h_score(up, down) for _, (down, up) in found), default=0.0)
    near = [point for chosen, point in found if chosen or h_score(point[1], point[0]) >= enough] or [(0.0, 0.0)]
    return part_of([point[0] for point in near]), part_of([point[1] for point in near])


def draw_lines(axes: Axes, method: MethodResult) -> None:
    """A line through the settings; after another method one for each learning rate."""
    runs: dict[float | None, list[Point]] = {}
    for point in method.curve:
        if point.record is not None:
            key = point.cell.rate if method.entry.after is not None else None
            runs.setdefault(key, []).append((point.record.mean("downstream"), point.record.mean("upstream")))
    shade = method_colour(method)
    for line in runs.values():
        xs, ys = zip(*line, strict=True)
        axes.plot(xs, ys, color=shade, linewidth=1.4, marker=".", markersize=5, alpha=0.8, zorder=3)
    for is_chosen, place in points(method):
        if is_chosen:
            draw_circle(axes, place, shade, True, 5)
            draw_ring(axes, place, 12)


def plot_depths(comparisons: Sequence[Comparison], path: Path) -> None:
    """Write the picture of all depths, atomically: one line for each method and world and task."""
    save_page(draw_depths(comparisons), path)


def draw_depths(comparisons: Sequence[Comparison]) -> Figure:
    """H-score over the number of tuned layers, all layers at the right; one block of panels for each world and task."""
    blocks: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        blocks.setdefault((comparison.group.world, comparison.group.task), []).append(comparison)
    heights = [page_height(len(block[0].methods)) - TOP - FOOT + 0.45 for block in blocks.values()]
    height = TOP + sum(heights) + FOOT
    figure = new_page("H-score and the number of tuned decoder layers", DEPTHS_TEXT, height)
    top = TOP
    for ((world, task), block), inches in zip(blocks.items(), heights, strict=True):
        write(figure, MARGIN, top + 0.12, f"{world}, {task}", fontsize=BODY, fontweight="bold", color=MUTED)
        ordered = sorted(block, key=lambda each: float("inf") if each.group.depth is None else each.group.depth)
        draw_depth_panels(figure, ordered, top + 0.25)
        top += inches
    write(figure, MARGIN, height - 0.25, H_TEXT, fontsize=SMALL, color=MUTED)
    return figure


def draw_depth_panels(figure: Figure, ordered: Sequence[Comparison], top: float) -> None:
    """One panel for each method that has a result at any depth."""
    names = list(dict.fromkeys(method.entry.name for comparison in ordered for method in comparison.methods))
    lines = {name: found for name in names if (found := h_scores(ordered, name))}
    values = [spread.mean for found in lines.values() for spread in found.values()] or [0.0]
    for name, axes in zip(lines, panels(figure, len(lines), top), strict=True):
        axes.set_xlim(-0.4, len(ordered) - 0.6)
        axes.set_ylim(*part_of(values))
        axes.set_xticks(range(len(ordered)), [str(each.group.depth or "all") for each in ordered])
        axes.locator_params(axis="y", nbins=4)
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        for found in lines.values():
            axes.plot(list(found), [each.mean for each in found.values()], color=FAINT, linewidth=1, zorder=2)
        mine = lines[name]
        errors = [each.std or 0.0 for each in mine.values()]
        means = [each.mean for each in mine.values()]
        axes.errorbar(list(mine), means, errors, color=GAIN, marker="o", markersize=4, capsize=2, zorder=4)
        head(axes, shorten(name, LONGEST_NAME), "")


def h_scores(ordered: Sequence[Comparison], name: str) -> dict[int, Spread]:
    """Place on the axis -> H-score of one method."""
    return {
        place: method.h_score
        for place, comparison in enumerate(ordered)
        for method in comparison.methods
        if method.entry.name == name and method.records
    }
