"""The list beside a plane: what each numbered circle is, and its scores in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dowser_pl.reporting.grid import shorten
from dowser_pl.reporting.plots.style import BODY, MUTED, SMALL, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_TITLE, LONGEST_DETAILS = 22, 60


class Entry(NamedTuple):
    """One line: the number and colour of its circle, name, settings in small letters, one cell per column."""

    number: str
    colour: str
    name: str
    details: str
    cells: Sequence[str]


def draw_list(
    figure: Figure,
    left: float,
    top: float,
    columns: Mapping[str, float],
    entries: Sequence[Entry],
    line_inches: float,
    cell_size: float = BODY,
) -> None:
    """Draw all entries below the names of the columns, in inches.

    Args:
        figure: to draw on.
        left: where the numbers start.
        top: baseline of the column names; the first entry stands one line below.
        columns: name -> right end.
        entries: from top to bottom.
        line_inches: from one entry to the next.
        cell_size: of the scores, in points.
    """
    for name, right in columns.items():
        write(figure, right, top, name, ha="right", fontsize=SMALL, color=MUTED)
    for entry in entries:
        top += line_inches
        write(figure, left, top, entry.number, fontweight="bold", color=entry.colour)
        write(figure, left + 0.36, top, shorten(entry.name, LONGEST_TITLE), fontweight="bold")
        write(figure, left + 0.36, top + 0.18, shorten(entry.details, LONGEST_DETAILS), fontsize=SMALL, color=MUTED)
        for right, cell in zip(columns.values(), entry.cells, strict=True):
            write(figure, right, top, cell, ha="right", fontsize=cell_size)
