"""How the plots look: one palette, one set of sizes, the page of a slide, and how it becomes a file.

Places are in inches from the upper left corner. Pictures are drawn in light colours; a dark one is the same with each
colour replaced.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import atomic_path
from dowser_pl.reporting.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
PAPER, INK, MUTED, FAINT = "#ffffff", "#1f2328", "#636b78", "#d5d9e0"
# Okabe and Ito's colours, told apart by readers with any common colour blindness.
GAIN, LOSS = "#0072B2", "#D55E00"
KNEE = "#CC79A7"
DASHES = (0, (4, 3))
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")
DARK = {
    PAPER: "#14181f",
    INK: "#e8ecf1",
    MUTED: "#9fa8b5",
    FAINT: "#39414d",
    "#0072B2": "#4ea3e3",
    "#D55E00": "#f2853f",
    "#009E73": "#34c9a3",
    "#CC79A7": "#e59ac2",
    "#E69F00": "#f4b83d",
    "#56B4E9": "#93d3f8",
    "#7A5195": "#b592d4",
    "#4D4D4D": "#b9bfc8",
}
"""What each colour is on a dark slide."""
VARIABLES = {old: f"--c{number}" for number, old in enumerate(DARK)}
"""What each colour is called on a page that may be light or dark."""
TITLE, SUBTITLE, HEADING, BODY, SMALL = 20, 12, 13, 11, 9.5  # points
SAME = 0.0005  # a change that rounds to 0.000 is neither a gain nor a loss


def change_colour(change: float, interval: Interval | None = None) -> str:
    """Blue for a gain, vermilion for a loss, grey for none, and for one that chance may have made by its interval."""
    if abs(change) < SAME or (interval is not None and interval.low <= 0 <= interval.high):
        return MUTED
    return GAIN if change > 0 else LOSS


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second that only pictures should cost

    return Figure(figsize=(width, height))


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes without ticks, frame or background."""
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
    face = colour if filled else PAPER
    axes.plot(
        *point,
        color=colour,
        marker="o",
        markersize=size,
        markerfacecolor=face,
        markeredgecolor=colour,
        markeredgewidth=2,
        clip_on=False,
        zorder=5 if filled else 4,
    )


def draw_bar(axes: Axes, point: tuple[float, float], interval: Interval | None, colour: str, upright: bool) -> None:
    """The interval of one of the coordinates, as a thin line through the point; nothing where it is not known."""
    if interval is None:
        return
    ends = [interval.low, interval.high]
    xs, ys = ([point[0]] * 2, ends) if upright else (ends, [point[1]] * 2)
    marker = "_" if upright else "|"
    axes.plot(xs, ys, color=colour, linewidth=1.3, marker=marker, markersize=6, clip_on=False, zorder=3.5)


def draw_ring(axes: Axes, point: tuple[float, float], size: float) -> None:
    """Around the circle of the knee."""
    axes.plot(*point, color=KNEE, marker="o", markersize=size, markerfacecolor="none", clip_on=False, zorder=6)


def signed(text: str) -> str:
    """A number with a true minus sign, as wide as its plus."""
    return text.replace("-", "\u2212")


WIDTH, HEIGHT = 13.33, 7.5  # inches, a 16:9 slide; taller where there is much to show
MARGIN, TOP = 0.5, 1.3
FORMATS = (".png", ".pdf", ".svg")


def new_page(title: str, subtitle: str, height: float = HEIGHT, width: float = WIDTH) -> Figure:
    """A figure in inches with what it shows above it; drawing starts below `TOP`."""
    figure = new_figure(width, height)
    write(figure, MARGIN, 0.62, title, fontsize=TITLE, fontweight="bold")
    write(figure, MARGIN, 0.95, subtitle, fontsize=SUBTITLE, color=MUTED)
    return figure


def check_format(path: str | Path) -> None:
    """Refuse files that no picture is written to, for those who measure long before they draw.

    Raises:
        DowserError: the suffix is not .png, .pdf or .svg.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise DowserError(f"Cannot plot to {path}: expected a name that ends in {', '.join(FORMATS)}.")


def save_page(figure: Figure, path: str | Path, dark: bool = False) -> None:
    """Write a figure at 200 dots per inch, atomically; the suffix decides the format.

    Args:
        figure: drawn in light colours; it is recoloured in place.
        path: of the file.
        dark: whether it is for a dark slide.

    Raises:
        DowserError: the suffix is not .png, .pdf or .svg.
    """
    check_format(path)
    if dark:
        recolour(figure, DARK)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor=DARK[PAPER] if dark else PAPER)


def halo(colour: str = PAPER) -> list[Any]:
    """Around a label, so that it can be read where it lies on a line."""
    from matplotlib.patheffects import withStroke  # noqa: PLC0415 - as everything of matplotlib, only for a picture

    return [withStroke(linewidth=2.5, foreground=colour)]


COLOURED = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")


def recolour(figure: Figure, colours: Mapping[str, str]) -> None:
    """Replace colours, such as those of `DARK`, in all that is drawn."""
    from matplotlib.colors import to_hex  # noqa: PLC0415 - as everything of matplotlib, only for a picture

    wanted = {old.lower(): new for old, new in colours.items()}

    def replaced(value: Any) -> Any:
        return wanted.get(to_hex(value)) if isinstance(value, str) or len(value) in (3, 4) else None

    drawn = figure.findobj()
    arrows: list[Any] = [getattr(each, "arrow_patch", None) for each in drawn]
    for artist in [*drawn, *filter(None, arrows)]:
        for name in COLOURED:
            value = getattr(artist, f"get_{name}", lambda: "none")()
            if isinstance(value, str) and value == "none":
                continue
            if new := replaced(value):
                getattr(artist, f"set_{name}")(new)
        if artist.get_path_effects():
            artist.set_path_effects(halo(colours[PAPER]))


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as the text of an SVG element for a page, whose colours are those of `VARIABLES`.

    Args:
        figure: drawn in light colours.
        name: tells this picture's parts from those of others on the page.
    """
    from matplotlib import rc_context  # noqa: PLC0415 - as everything of matplotlib, only for a picture

    file = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace("xlink:href", "href")
    for old, variable in VARIABLES.items():
        text = re.sub(re.escape(old), f"var({variable})", text, flags=re.IGNORECASE)
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text, count=1)


def page_colours(colours: Mapping[str, str]) -> str:
    """The declarations of `VARIABLES` in CSS; `colours` has another colour for some, or all."""
    return " ".join(f"{variable}: {colours.get(old, old)};" for old, variable in VARIABLES.items())
