"""Where tuned models moved, to be pasted into a talk: one map of layers and matrices each, and the drift by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dowser_pl.reporting.moved import Moved
from dowser_pl.reporting.plots.decoder_map import draw_map
from dowser_pl.reporting.plots.style import (
    BODY,
    FAINT,
    LOSS,
    MARGIN,
    MUTED,
    SMALL,
    TOP,
    WIDTH,
    add_axes,
    new_page,
    save_page,
    write,
)
from dowser_pl.reporting.table import shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS, GAP = 4, 0.4
HEAD, NAMES, LEFT = 0.55, 0.95, 0.35  # above a map, below it, and left of it
DRIFT_SHARE = 0.3  # of a panel's width
LEAST, MOST = 1.6, 4.2  # height of a map
FLOOR = 1e-6  # changes below it are shown as none
SUBTITLE = (
    "map: how far each decoder matrix moved, beside its size; "
    "bars: how far each layer's output drifted, on rows of the base"
)


def plot_moved(moved: Mapping[str, Moved], path: str | Path) -> None:
    """Write the picture of some tuned models of one base, atomically; the suffix decides the format.

    Args:
        moved: label -> where that model moved; of one base, at least one.
        path: of the file.

    Raises:
        DowserError: the suffix is not .png, .pdf or .svg.
    """
    save_page(draw_moved(moved), path)


def draw_moved(moved: Mapping[str, Moved]) -> Figure:
    """One panel for each model, four beside each other; all share the scales."""
    layers = max(len(each.drift) for each in moved.values())
    tall = min(max(0.35 * layers, LEAST), MOST)
    lines = math.ceil(len(moved) / ACROSS)
    height = TOP + lines * (HEAD + tall + NAMES) + 0.4
    figure = new_page("What training moved", SUBTITLE, height)
    across = min(max(len(moved), 2), ACROSS)
    width = (WIDTH - 2 * MARGIN - (across - 1) * GAP) / across
    sizes = [each.size for one in moved.values() for each in one.matrices if each.size > FLOOR] or [FLOOR, 1.0]
    scale = (math.log10(min(sizes)), math.log10(max(sizes)))
    furthest = max(max(each.drift) for each in moved.values()) or 1.0
    for place, (label, each) in enumerate(moved.items()):
        line, column = divmod(place, ACROSS)
        left, top = MARGIN + column * (width + GAP), TOP + line * (HEAD + tall + NAMES)
        _draw_panel(figure, label, each, (left, top, width, tall), scale, furthest)
    low, high = (10**end for end in scale)
    foot = f"Colours: {low:.1g} (light) to {high:.1g} (dark) of the size of a matrix, in powers; white: not moved."
    write(figure, MARGIN, height - 0.25, foot, fontsize=SMALL, color=MUTED)
    return figure


def _draw_panel(
    figure: Figure,
    label: str,
    moved: Moved,
    box: tuple[float, float, float, float],
    scale: tuple[float, float],
    furthest: float,
) -> None:
    left, top, width, tall = box
    share = sum(each.share for each in moved.matrices) / max(len(moved.matrices), 1)
    write(figure, left + LEFT, top + 0.2, shorten(label, 30), fontsize=BODY, fontweight="bold")
    aside = f"{share:.0%} of the entries of a matrix differ"
    write(figure, left + LEFT, top + 0.4, aside, fontsize=SMALL - 1, color=MUTED)
    wide = (width - LEFT) * (1 - DRIFT_SHARE)
    sizes = {(each.layer, each.kind): math.log10(each.size) for each in moved.matrices if each.size > FLOOR}
    draw_map(figure, sizes, moved.kinds, len(moved.drift), (left + LEFT, top + HEAD, wide - 0.1, tall), scale)
    axes = add_axes(figure, left + LEFT + wide, top + HEAD, width - LEFT - wide, tall)
    layers = range(len(moved.drift))
    axes.barh(list(layers), list(moved.drift), color=LOSS, height=0.7)
    axes.set_xlim(0, furthest * 1.05)
    axes.set_ylim(len(moved.drift) - 0.5, -0.5)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=3, prune="lower")  # 0 would stand in the names of the matrices
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
