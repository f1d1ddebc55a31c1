"""How the plots look: one palette, one set of sizes, the page of a slide, and how it becomes a file.

Places are in inches from the upper left corner.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
INK, MUTED, FAINT = "#1f2328", "#6b7280", "#d5d9e0"
# Okabe and Ito's colours, told apart by readers with any common colour blindness.
GAIN, LOSS = "#0072B2", "#D55E00"
KNEE = "#CC79A7"
DASHES = (0, (4, 3))
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")
TITLE, SUBTITLE, HEADING, BODY, SMALL = 20, 12, 13, 11, 9.5  # points
SAME = 0.0005  # a change that rounds to 0.000 is neither a gain nor a loss


def change_colour(change: float) -> str:
    """Blue for a gain, vermilion for a loss, grey for none."""
    if abs(change) < SAME:
        return MUTED
    return GAIN if change > 0 else LOSS


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second that only pictures should cost

    return Figure(figsize=(width, height))


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Bare axes."""
    full_width, full_height = figure.get_size_inches()
    bottom = full_height - top - height
    box = (left / full_width, bottom / full_height, width / full_width, height / full_height)
    axes = figure.add_axes(box)
    axes.tick_params(colors=MUTED, labelsize=SMALL, length=0, pad=5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def write(figure: Figure, left: float, top: float, text: str, **style: Any) -> None:
    """Text with its baseline at `top`; `style` as for matplotlib's text."""
    width, height = figure.get_size_inches()
    options: dict[str, Any] = {"color": INK, "fontsize": BODY, "va": "baseline", "parse_math": False}
    figure.text(left / width, 1 - top / height, text, **(options | style))


def draw_circle(axes: Axes, point: tuple[float, float], colour: str, filled: bool, size: float) -> None:
    """Hollow for the base model, full for the tuned one; also over the edge of the axes."""
    face = colour if filled else "white"
    axes.plot(
        *point,
        marker="o",
        markersize=size,
        markerfacecolor=face,
        markeredgecolor=colour,
        markeredgewidth=2,
        clip_on=False,
        zorder=5 if filled else 4,
    )


def draw_ring(axes: Axes, point: tuple[float, float], size: float) -> None:
    """Around the circle of the knee."""
    axes.plot(
        *point, marker="o", markersize=size, markerfacecolor="none", markeredgecolor=KNEE, clip_on=False, zorder=6
    )


def signed(text: str) -> str:
    """A number with a true minus sign, as wide as its plus."""
    return text.replace("-", "\u2212")


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
        DowserError: the suffix is not .png, .pdf or .svg.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise DowserError(f"Cannot plot to {path}: expected a name that ends in {', '.join(FORMATS)}.")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="white")
