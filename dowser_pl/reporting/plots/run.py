"""The picture of one run, to be pasted into a talk: every task before and after, and the trade-off.

Figures are made without pyplot: no window, no display, no global state. matplotlib is imported when a picture is
drawn and not before, so that reading reports stays fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from dowser_pl.reporting.drift import drift_text, kl_text
from dowser_pl.reporting.intervals import Interval
from dowser_pl.reporting.plots.plane import draw_move, draw_plane
from dowser_pl.reporting.plots.style import (
    FAINT,
    GAIN,
    HEADING,
    HEIGHT,
    MARGIN,
    MUTED,
    SMALL,
    SUBTITLE,
    TOP,
    WIDTH,
    add_axes,
    change_colour,
    draw_bar,
    draw_circle,
    new_page,
    save_page,
    signed,
    write,
)
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.scores import BeforeAfter, Role, TaskScore
from dowser_pl.reporting.table import change_text, facts, score_text, settings_line, shorten, width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADINGS: dict[Role, str] = {"downstream": "Downstream: what it learnt", "upstream": "Upstream: what it kept"}
HEAD_INCHES, FOOT_INCHES = 0.5, 0.45
LETTER_INCHES, LONGEST_NAME = 0.082, 26
SCORES_INCHES, CHANGE_INCHES, INTERVAL_INCHES = 1.25, 0.72, 1.12
STEPS = {1.0: 0.25, 1.5: 0.5, 2.0: 0.5, 3.0: 1.0, 5.0: 1.0, 10.0: 2.0}  # end of a scale: distance of its ticks


@dataclass(frozen=True)
class Block:
    """Tasks of one role on one scale; `aside` is written at the right of the heading."""

    heading: str
    aside: str
    tasks: list[tuple[str, TaskScore]]
    limit: float

    def inches(self, row_inches: float) -> float:
        """Height with heading and scale."""
        return HEAD_INCHES + FOOT_INCHES + row_inches * len(self.tasks)


def blocks(report: Report) -> list[Block]:
    """Downstream, then upstream; a metric that exceeds 1 (CIDEr) has a block and a scale of its own.

    Within a block the largest gain stands first, so that what was forgotten gathers at the end.
    """
    found = []
    means: dict[Role, BeforeAfter] = {"downstream": report.downstream, "upstream": report.upstream}
    for role, mean in means.items():
        tasks = sorted(report.of_role(role).items(), key=lambda item: -item[1].gain)
        wide = {task.metric for _, task in tasks if max(task.before, task.after) > 1}
        unit = [item for item in tasks if item[1].metric not in wide]
        aside = f"mean {score_text(mean.before)} \u2192 {score_text(mean.after)}"
        if unit:
            found.append(Block(HEADINGS[role], f"{role} {aside}" if wide else aside, unit, 1.0))
        for metric in sorted(wide):
            rows = [item for item in tasks if item[1].metric == metric]
            limit = scale_end(max(max(task.before, task.after) for _, task in rows))
            alone = not unit and len(wide) == 1
            found.append(Block(f"{HEADINGS[role]} ({rows[0][1].title})", aside if alone else "", rows, limit))
    return found


def scale_end(top: float) -> float:
    """The next round end of a scale: 1, 1.5, 2, 3, 5, 10, then tens."""
    return next((end for end in STEPS if top <= end), 10.0 * -(-top // 10))


def name_inches(parts: list[Block]) -> float:
    """Room for the longest task name, the same in all blocks so that their scales line up."""
    longest = max((width(name) for part in parts for name, _ in part.tasks), default=0)
    return 0.3 + LETTER_INCHES * min(max(longest, 8), LONGEST_NAME)


def draw_blocks(
    figure: Figure, report: Report, parts: list[Block], left: float, top: float, right: float, row: float
) -> None:
    """Draw all blocks below each other, in inches; `row` is the height of a task."""
    names = name_inches(parts)
    for part in parts:
        write(figure, left, top + 0.24, part.heading, fontsize=HEADING, fontweight="bold")
        write(figure, right, top + 0.24, part.aside, color=MUTED, ha="right")
        draw_rows(figure, report, part, (left, left + names, right), top + HEAD_INCHES, row)
        top += part.inches(row)


def draw_rows(
    figure: Figure, report: Report, part: Block, columns: tuple[float, float, float], top: float, row: float
) -> None:
    """Names, circles and numbers of one block; columns: left of the names, left of the scale, right end."""
    left, scale, right = columns
    known = any(report.interval(name, "change") for name in report.tasks)
    numbers = right - INTERVAL_INCHES * known  # right end of the changes
    end = numbers - SCORES_INCHES - CHANGE_INCHES
    axes = add_axes(figure, scale, top, end - scale, row * len(part.tasks))
    draw_unit(axes, part)
    for line, (name, task) in enumerate(part.tasks):
        interval = report.interval(name, "change")
        colour = change_colour(task.gain, interval)
        axes.plot([task.before, task.after], [line, line], color=colour, linewidth=3, alpha=0.45, zorder=2)
        draw_bar(axes, (task.after, line), report.interval(name, "after"), colour, upright=False)
        draw_circle(axes, (task.before, line), MUTED, filled=False, size=7.5)
        draw_circle(axes, (task.after, line), colour, filled=True, size=8.5)
        baseline = top + row * (line + 0.5) + 0.055
        scores = f"{score_text(task.before)} \u2192 {score_text(task.after)}"
        write(figure, left, baseline, shorten(name, LONGEST_NAME))
        write(figure, numbers - CHANGE_INCHES, baseline, scores, fontsize=SMALL, color=MUTED, ha="right")
        change = signed(change_text(task.change))
        write(figure, numbers, baseline, change, color=colour, fontweight="bold", ha="right")
        if interval is not None:
            write(figure, right, baseline, interval_text(interval), fontsize=SMALL, color=MUTED, ha="right")


def draw_unit(axes: Axes, part: Block) -> None:
    """The scale of a block, and a line of the grid at each of its ticks."""
    step = STEPS.get(part.limit, part.limit / 5)
    ticks = [step * i for i in range(round(part.limit / step) + 1)]
    axes.set_xlim(0, part.limit)
    axes.set_ylim(len(part.tasks) - 0.5, -0.5)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([])
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def interval_text(interval: Interval) -> str:
    """The ends of an interval, with their signs."""
    return signed(f"{interval.low:+.2f} \u2026 {interval.high:+.2f}")


TASKS_RIGHT, PLANE_LEFT, PLANE_SIZE = 7.95, 9.25, 3.5
LOWEST_ROW, HIGHEST_ROW = 0.3, 0.55
LONGEST_METHOD, LONGEST_SUBTITLE, LONGEST_FACT = 28, 110, 64
CLOSE = 0.25  # points that are closer are shown on a part of the plane
H_NOTE = "H-score: harmonic mean of both means, high only if both are; grey lines join equal ones."
INTERVAL_NOTE = "Bars and ranges: 95 % intervals for {} questions. Grey: a change that other questions might not show."


def plot_report(report: Report, path: str | Path, dark: bool = False) -> None:
    """Write the picture of one run, atomically; the suffix decides the format.

    Raises:
        DowserError: the suffix is not .png, .pdf or .svg.
    """
    save_page(draw_report(report), path, dark)


def draw_report(report: Report) -> Figure:
    """Tasks at the left, the trade-off plane at the right if there are tasks of both roles."""
    parts = blocks(report)
    num_rows = sum(len(part.tasks) for part in parts)
    rest = TOP + len(parts) * (HEAD_INCHES + FOOT_INCHES) + MARGIN / 2
    row_inches = min(max((HEIGHT - rest) / max(num_rows, 1), LOWEST_ROW), HIGHEST_ROW)
    both = report.h_score.after is not None
    height = max(HEIGHT if both else 0.0, rest + num_rows * row_inches)
    figure = new_page(headline(report), settings_line(report, LONGEST_SUBTITLE), height)
    write(figure, WIDTH - MARGIN, 0.95, "\u25cb before    \u25cf after", fontsize=SUBTITLE, ha="right")
    draw_blocks(figure, report, parts, MARGIN, TOP, TASKS_RIGHT if both else WIDTH - MARGIN, row_inches)
    if both:
        draw_trade_off(figure, report)
    return figure


def headline(report: Report) -> str:
    """The result in one line: "ModelDowser: downstream +0.562, upstream -0.276"."""
    means = (("downstream", report.downstream.change), ("upstream", report.upstream.change))
    parts = [f"{name} {signed(change_text(change))}" for name, change in means if change is not None]
    if report.upstream.change is None and report.drift is not None:
        parts.append(f"KL to the base {kl_text(report.drift.all.kl)}")
    return ": ".join([shorten(report.method, LONGEST_METHOD), ", ".join(parts)] if parts else [report.method])


def draw_trade_off(figure: Figure, report: Report) -> None:
    """The plane with one arrow, and under it what the numbers rest on."""
    before = (report.downstream.before or 0.0, report.upstream.before or 0.0)
    after = (report.downstream.after or 0.0, report.upstream.after or 0.0)
    left, right = PLANE_LEFT - 0.65, PLANE_LEFT + PLANE_SIZE
    h_text = f"H-score {score_text(report.h_score.before)} \u2192 {score_text(report.h_score.after)}"
    write(figure, left, TOP + 0.24, "Trade-off", fontsize=HEADING, fontweight="bold")
    write(figure, right, TOP + 0.24, h_text, color=MUTED, ha="right")
    axes = add_axes(figure, PLANE_LEFT, TOP + HEAD_INCHES + 0.15, PLANE_SIZE, PLANE_SIZE)
    draw_plane(axes, [before, after], cut=math.dist(before, after) < CLOSE)
    draw_move(axes, before, after, GAIN)
    for point, moment, colour in ((before, "before", MUTED), (after, "after", GAIN)):
        draw_bar(axes, point, report.role_interval("downstream", moment), colour, upright=False)
        draw_bar(axes, point, report.role_interval("upstream", moment), colour, upright=True)
    draw_circle(axes, before, MUTED, filled=False, size=12)
    draw_circle(axes, after, GAIN, filled=True, size=13)
    top = TOP + HEAD_INCHES + PLANE_SIZE + 0.92
    for line, text in enumerate(notes(report)):
        write(figure, left, top + 0.19 * line, text, fontsize=SMALL - 0.5, color=MUTED)


def notes(report: Report) -> list[str]:
    """Lines under the plane: what the H-score is, what bars are, and whether frozen entries stayed."""
    counts = sorted({asked.count for asked in report.questions.values()})
    found = wrap(H_NOTE, LONGEST_FACT)
    if counts:
        asked = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
        found += wrap(INTERVAL_NOTE.format(asked), LONGEST_FACT)
    found += [f"{name}: {value}" for name, value in facts(report)[:2]]
    return found + (wrap(f"drift from the base: {drift_text(report.drift)}", LONGEST_FACT) if report.drift else [])
