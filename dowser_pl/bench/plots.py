"""The pictures of a bench: what each method reached, all settings that it tried, and how many layers it needs.

Methods are told apart by their names beside what they belong to, not by colours: there are more methods than colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from dowser_pl.bench.cells import setting_text
from dowser_pl.bench.page import spread_text
from dowser_pl.bench.results import Comparison, MethodResult, Spread
from dowser_pl.bench.small_multiples import method_colour
from dowser_pl.reporting.intervals import Interval
from dowser_pl.reporting.plots.labels import Label, draw_labels
from dowser_pl.reporting.plots.plane import draw_part, draw_whole, part_of
from dowser_pl.reporting.plots.style import (
    BODY,
    FAINT,
    HEADING,
    HEIGHT,
    INK,
    MARGIN,
    MUTED,
    SMALL,
    add_axes,
    draw_bar,
    draw_circle,
    new_page,
    save_page,
    write,
)
from dowser_pl.reporting.table import score_text, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP = 1.62
HIGHEST_ROW, LOWEST_ROW, FOOT_INCHES = 0.42, 0.31, 0.8
NAMES_LEFT, LONGEST_NAME, LONGEST_SETTING = MARGIN + 0.28, 20, 30
DOTS_LEFT, DOTS_INCHES, NUMBER_INCHES = 2.75, 0.95, 1.0
PLANE_LEFT, PLANE_SIZE = 9.7, 3.05
WIDEST_CROWD = 4.0  # times the median distance from the median: a score farther off lies outside of the crowd
SMALLEST_CROWD = 0.02  # such a distance is not taken for less
AFTER_NOTE = "merged with the base after training"


class Column(NamedTuple):
    """One score of all methods."""

    name: str
    of: Callable[[MethodResult], Spread]


COLUMNS = (
    Column("H-score", lambda method: method.h_score),
    Column("downstream", lambda method: method.downstream),
    Column("upstream", lambda method: method.upstream),
)


def plot_trade_off(comparison: Comparison, path: Path) -> None:
    """Write the picture of one group, atomically; the suffix decides the format."""
    save_page(draw_trade_off(comparison), path)


def draw_trade_off(comparison: Comparison) -> Figure:
    """Three scores of every method at the left, one line each; the trade-off of those that lie close at the right."""
    methods = [method for method in comparison.methods if method.records]
    row = min(HIGHEST_ROW, max(LOWEST_ROW, (HEIGHT - TOP - FOOT_INCHES) / max(len(methods), 1)))
    height = max(HEIGHT, TOP + row * len(methods) + FOOT_INCHES)
    figure = new_page(f"What each method learns and keeps: {comparison.group.text}", seeds_text(methods), height)
    bold: dict[str, Any] = {"fontweight": "bold", "fontsize": BODY - 0.5}
    for number, method in enumerate(methods, 1):
        baseline = TOP + row * (number - 0.5) + 0.05
        write(figure, MARGIN, baseline, str(number), fontsize=SMALL, color=MUTED)
        write(figure, NAMES_LEFT, baseline - 0.04, shorten(method.entry.name, LONGEST_NAME), **bold)
        setting = "" if method.choice is None else setting_text(method.choice.setting)
        below: dict[str, Any] = {"fontsize": SMALL - 2, "color": MUTED}
        write(figure, NAMES_LEFT, baseline + 0.075, shorten(setting, LONGEST_SETTING), **below)
    for place, column in enumerate(COLUMNS):
        draw_column(figure, column, methods, DOTS_LEFT + place * (DOTS_INCHES + NUMBER_INCHES), row)
    if methods:
        draw_crowd(figure, methods)
    write(figure, MARGIN, height - 0.3, foot(comparison), fontsize=SMALL, color=MUTED)
    return figure


def seeds_text(methods: Sequence[MethodResult]) -> str:
    """What dots and bars are."""
    counts = sorted({len(method.records) for method in methods})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "no"
    bars = "bars: standard deviation over" if counts and counts[-1] > 1 else "of"
    return f"test split at each method's best setting on the validation split; {bars} {seeds} seeds; best H-score first"


def foot(comparison: Comparison) -> str:
    """What the H-score is, what colours are, and the base model."""
    parts = ["H-score: harmonic mean of downstream and upstream mean, high only if both are"]
    if comparison.base is not None:
        down, up = comparison.base
        parts.append(f"base model: downstream {score_text(down)}, upstream {score_text(up)}")
    if any(method.entry.after is not None for method in comparison.methods):
        parts.append(f"vermilion: {AFTER_NOTE}")
    return "   \u00b7   ".join(parts)


def ends(spread: Spread) -> Interval | None:
    """One standard deviation on both sides; None for one seed."""
    return None if spread.std is None else Interval(spread.mean - spread.std, spread.mean + spread.std)


def within(interval: Interval | None, low: float, high: float) -> Interval | None:
    """What of an interval an axis shows."""
    return None if interval is None else Interval(max(low, interval.low), min(high, interval.high))


def crowd(values: Sequence[float]) -> list[bool]:
    """Which of the values lie with most of them, rather than far off."""
    middle = median(values)
    scale = max(SMALLEST_CROWD, median(abs(value - middle) for value in values))
    return [abs(value - middle) <= WIDEST_CROWD * scale for value in values]


def draw_column(figure: Figure, column: Column, methods: Sequence[MethodResult], left: float, row: float) -> None:
    """Dots with bars on a scale of those that lie close, arrows to those that lie far off, and the numbers."""
    write(figure, left, TOP - 0.18, column.name, fontsize=BODY, fontweight="bold")
    axes = add_axes(figure, left, TOP, DOTS_INCHES, row * len(methods))
    means = [column.of(method).mean for method in methods]
    near = [mean for mean, inside in zip(means, crowd(means), strict=True) if inside] if means else [0.0]
    low, high = part_of(near)
    axes.set_xlim(low, high)
    axes.set_ylim(max(len(methods), 1) + 0.5, 0.5)
    axes.set_yticks([])
    axes.set_xticks([low, high], [f"{low:g}", f"{high:g}"])
    for line in range(1, len(methods) + 1):
        axes.axhline(line, color=FAINT, linewidth=0.8, zorder=1)
    for line, (method, mean) in enumerate(zip(methods, means, strict=True), 1):
        spread, shade = column.of(method), method_colour(method)
        if low <= mean <= high:
            draw_bar(axes, (mean, line), within(ends(spread), low, high), shade, upright=False)
            draw_circle(axes, (mean, line), shade, True, 5.5)
        else:
            edge = low if mean < low else high
            marker = "<" if mean < low else ">"
            axes.plot(edge, line, marker=marker, markersize=7, color=shade, clip_on=False, zorder=5)
        baseline = TOP + row * (line - 0.5) + 0.05
        write(figure, left + DOTS_INCHES + 0.1, baseline, spread_text(spread), fontsize=SMALL - 1, color=INK)


def draw_crowd(figure: Figure, methods: Sequence[MethodResult]) -> None:
    """The part of the plane where most methods lie, each with its name; what lies outside is listed below it."""
    points = [(method.downstream.mean, method.upstream.mean) for method in methods]
    inside = [
        all(both)
        for both in zip(crowd([point[0] for point in points]), crowd([point[1] for point in points]), strict=True)
    ]
    shown = [each for each in zip(methods, points, inside, strict=True) if each[2]]
    write(figure, PLANE_LEFT - 0.75, TOP - 0.18, "Where most of them lie", fontsize=HEADING, fontweight="bold")
    axes = add_axes(figure, PLANE_LEFT, TOP + 0.3, PLANE_SIZE, PLANE_SIZE)
    across, upwards = (part_of([point[axis] for _, point, _ in shown]) for axis in (0, 1))
    draw_part(axes, across, upwards)
    draw_whole(axes, points)
    labels = []
    for method, point, _ in shown:
        draw_bar(axes, point, within(ends(method.downstream), *across), FAINT, upright=False)
        draw_bar(axes, point, within(ends(method.upstream), *upwards), FAINT, upright=True)
        draw_circle(axes, point, method_colour(method), True, 5)
        labels.append(Label(point, str(methods.index(method) + 1), False, 3))
    draw_labels(axes, labels, [])
    outside = [
        f"{methods.index(method) + 1} {method.entry.name} {point[0]:.2f}, {point[1]:.2f}"
        for method, point, near in zip(methods, points, inside, strict=True)
        if not near
    ]
    if outside:
        text = shorten("outside: " + ";  ".join(outside), 60)
        write(figure, PLANE_LEFT - 0.75, TOP + PLANE_SIZE + 1.15, text, fontsize=SMALL, color=MUTED)
