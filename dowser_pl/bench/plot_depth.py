"""H-score of every method over the number of tuned decoder layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dowser_pl.bench.plots import colour, dashes
from dowser_pl.bench.results import Comparison, Spread
from dowser_pl.reporting.plots.page import MARGIN, new_page, save_page
from dowser_pl.reporting.plots.style import BODY, FAINT, INK, add_axes, write

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
