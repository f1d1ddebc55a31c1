"""The picture of one run, to be pasted into a talk: every task before and after, and the trade-off.

Figures are made without pyplot: no window, no display, no global state. matplotlib is imported when a picture is
drawn and not before, so that reading reports stays fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dowser_pl.reporting.grid import shorten
from dowser_pl.reporting.plots.page import HEIGHT, MARGIN, TOP, WIDTH, new_page, save_page
from dowser_pl.reporting.plots.plane import draw_move, draw_plane
from dowser_pl.reporting.plots.style import GAIN, HEADING, MUTED, SMALL, SUBTITLE, add_axes, draw_circle, signed, write
from dowser_pl.reporting.plots.tasks import FOOT_INCHES, HEAD_INCHES, blocks, draw_blocks
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.wording import change_text, facts, score_text, settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS_RIGHT, PLANE_LEFT, PLANE_SIZE = 7.75, 8.95, 3.9
LOWEST_ROW, HIGHEST_ROW = 0.3, 0.55
LONGEST_METHOD, LONGEST_SUBTITLE = 40, 120


def plot_report(report: Report, path: str | Path) -> None:
    """Write the picture of one run, atomically; the suffix decides the format.

    Raises:
        ValueError: the suffix is not .png, .pdf or .svg.
    """
    save_page(draw_report(report), path)


def draw_report(report: Report) -> Figure:
    """Tasks at the left, the trade-off plane at the right if there are tasks of both roles."""
    parts = blocks(report)
    num_rows = sum(len(part.tasks) for part in parts)
    rest = TOP + len(parts) * (HEAD_INCHES + FOOT_INCHES) + MARGIN / 2
    row_inches = min(max((HEIGHT - rest) / max(num_rows, 1), LOWEST_ROW), HIGHEST_ROW)
    both = report.h_score.after is not None
    subtitle = shorten("  \u00b7  ".join(settings(report)), LONGEST_SUBTITLE)
    figure = new_page(headline(report), subtitle, max(HEIGHT if both else 0.0, rest + num_rows * row_inches))
    write(figure, WIDTH - MARGIN, 0.95, "\u25cb before    \u25cf after", fontsize=SUBTITLE, ha="right")
    draw_blocks(figure, parts, MARGIN, TOP, TASKS_RIGHT if both else WIDTH - MARGIN, row_inches)
    if both:
        draw_trade_off(figure, report)
    return figure


def headline(report: Report) -> str:
    """The result in one line: "ModelDowser: downstream +0.562, upstream -0.276"."""
    means = (("downstream", report.downstream.change), ("upstream", report.upstream.change))
    parts = [f"{name} {signed(change_text(change))}" for name, change in means if change is not None]
    return ": ".join([shorten(report.method, LONGEST_METHOD), ", ".join(parts)] if parts else [report.method])


def draw_trade_off(figure: Figure, report: Report) -> None:
    """The plane with one arrow, and under it what the numbers rest on."""
    before = (report.downstream.before or 0.0, report.upstream.before or 0.0)
    after = (report.downstream.after or 0.0, report.upstream.after or 0.0)
    left, right = PLANE_LEFT - 0.55, PLANE_LEFT + PLANE_SIZE
    h_text = f"H-score {score_text(report.h_score.before)} \u2192 {score_text(report.h_score.after)}"
    write(figure, left, TOP + 0.24, "Trade-off", fontsize=HEADING, fontweight="bold")
    write(figure, right, TOP + 0.24, h_text, color=MUTED, ha="right")
    axes = add_axes(figure, PLANE_LEFT, TOP + HEAD_INCHES + 0.15, PLANE_SIZE, PLANE_SIZE)
    draw_plane(axes, [before, after])
    draw_move(axes, before, after, GAIN)
    draw_circle(axes, before, MUTED, filled=False, size=12)
    draw_circle(axes, after, GAIN, filled=True, size=13)
    for line, (name, value) in enumerate(facts(report)[:2]):
        place = TOP + HEAD_INCHES + PLANE_SIZE + 1.0 + 0.22 * line
        write(figure, left, place, f"{name}: {value}", fontsize=SMALL, color=MUTED)
