"""A map of the matrices of a decoder: layers downwards, kinds of matrices across, a number of each in colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dowser_pl.reporting.plots.style import FAINT, GAIN, INK, add_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_map"]


def draw_map(
    figure: Figure,
    numbers: Mapping[tuple[int, str], float],
    kinds: Sequence[str],
    layers: int,
    box: tuple[float, float, float, float],
    scale: tuple[float, float],
) -> None:
    """Draw it into a figure.

    Args:
        figure: in inches.
        numbers: (layer, kind) of a matrix -> what is shown; what is missing stays white.
        kinds: names of matrices within a layer, in order.
        layers: how many there are.
        box: left, top, width and height.
        scale: numbers that are lightest and darkest.
    """
    from matplotlib.colors import LinearSegmentedColormap  # noqa: PLC0415 - as everything of matplotlib

    values = [[numbers.get((layer, kind), math.nan) for kind in kinds] for layer in range(layers)]
    axes = add_axes(figure, *box)
    low, high = scale
    colours: Any = LinearSegmentedColormap.from_list("map", ["#e3eff8", GAIN, "#00263d"])
    axes.imshow(values, cmap=colours, vmin=low, vmax=max(high, low + 1e-3), aspect="auto", interpolation="nearest")
    names = [kind.rpartition(".")[2] for kind in kinds]
    axes.set_xticks(range(len(kinds)), names, rotation=60, ha="right", rotation_mode="anchor", color=INK)
    step = max(1, math.ceil(layers / 8))
    axes.set_yticks(range(0, layers, step), [str(layer) for layer in range(0, layers, step)])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(FAINT)
