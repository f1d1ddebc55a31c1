"""Which matrices of a model matter, to be pasted into a talk: a map of the decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dowser_pl.reporting.plots.decoder_map import draw_map
from dowser_pl.reporting.plots.style import MARGIN, MUTED, SMALL, TOP, check_format, new_page, save_page, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_importance", "plot_importance"]

_LEAST, _MOST, _A_LAYER = 1.6, 8.0, 0.3  # height of the map
_WIDE, _NAMES = 7.5, 1.0  # width of the page, and height of the names below the map
_SUBTITLE = "map: the median score of the weights of each decoder matrix"


def plot_importance(medians: Mapping[tuple[int, str], float], method: str, path: str | Path) -> None:
    """Write the picture, atomically; the suffix decides the format.

    Args:
        medians: number of a decoder layer, name of a matrix in it -> median score of its entries, at least 0.
        method: that scored them.
        path: of the file.

    Raises:
        DowserError: the suffix is not .png, .pdf or .svg.
    """
    check_format(path)
    save_page(draw_importance(medians, method), path)


def draw_importance(medians: Mapping[tuple[int, str], float], method: str) -> Figure:
    """Draw the map on a page of its own."""
    layers = 1 + max(layer for layer, _ in medians)
    tall = min(max(_A_LAYER * layers, _LEAST), _MOST)
    height = TOP + tall + _NAMES + 0.5
    figure = new_page(f"What matters, by {method}", _SUBTITLE, height, _WIDE)
    logs = {place: math.log10(median) for place, median in medians.items() if median > 0}
    low, high = (min(logs.values()), max(logs.values())) if logs else (0.0, 1.0)
    kinds = list(dict.fromkeys(kind for _, kind in medians))
    box = (MARGIN + 0.35, TOP, _WIDE - 2 * MARGIN - 0.35, tall)
    draw_map(figure, logs, kinds, layers, box, (low, high))
    foot = f"Colours: {10**low:.1g} (light) to {10**high:.1g} (dark), in powers; white: 0."
    write(figure, MARGIN, height - 0.25, foot, fontsize=SMALL, color=MUTED)
    return figure
