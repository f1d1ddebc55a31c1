"""A picture as a page: the size of a slide, title and subtitle, and how it becomes a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dowser_pl.files.atomic import atomic_path
from dowser_pl.reporting.plots.style import DPI, MUTED, SUBTITLE, TITLE, new_figure, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 13.33, 7.5  # inches, a 16:9 slide; taller where there is much to show
MARGIN, TOP = 0.5, 1.3
FORMATS = (".png", ".pdf", ".svg")


def new_page(title: str, subtitle: str, height: float = HEIGHT, width: float = WIDTH) -> Figure:
    """A figure in inches with what it shows above it; drawing starts below `TOP`."""
    figure = new_figure(width, height)
    write(figure, MARGIN, 0.62, title, fontsize=TITLE, fontweight="bold")
    write(figure, MARGIN, 0.95, subtitle, fontsize=SUBTITLE, color=MUTED)
    return figure


def save_page(figure: Figure, path: str | Path) -> None:
    """Write a figure at 200 dots per inch, atomically; the suffix decides the format.

    Raises:
        ValueError: the suffix is not .png, .pdf or .svg.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"Cannot plot to {path}: expected a name that ends in {', '.join(FORMATS)}.")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="white")
