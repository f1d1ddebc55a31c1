"""A table of strings, laid out for the terminal or as Markdown."""

import unicodedata
from collections.abc import Callable, Sequence

GAP = "  "
Grid = Callable[[Sequence[str], Sequence[Sequence[str]], str], str]  # lays out header, rows and aligns
RULE: tuple[str, ...] = ()  # a row without cells: a line across the table


def width(text: str) -> int:
    """Columns a text takes in a terminal: East Asian wide characters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def shorten(text: str, limit: int) -> str:
    """Cut a text to a number of columns, ending in "..." if it was cut."""
    if width(text) <= limit:
        return text
    while width(text) > limit - 3:
        text = text[:-1]
    return text + "..."


def padded(text: str, columns: int, align: str) -> str:
    """Fill with spaces on the right ("l") or on the left ("r")."""
    space = " " * (columns - width(text))
    return text + space if align == "l" else space + text


def text_grid(header: Sequence[str], rows: Sequence[Sequence[str]], aligns: str, limit: int = 100) -> str:
    """Columns side by side under a rule; the first column gives way when the table is wider than `limit`.

    Args:
        header: one title per column.
        rows: cells, one per column; `RULE` draws a line.
        aligns: one of "l" and "r" per column.
        limit: width in columns.
    """
    cells = [header, *(row for row in rows if row)]
    widths = [max(width(row[column]) for row in cells) for column in range(len(header))]
    others = sum(widths[1:]) + len(GAP) * (len(widths) - 1)
    widths[0] = max(min(widths[0], limit - others), 4)
    rule = "-" * (widths[0] + others)

    def line(row: Sequence[str]) -> str:
        fitted = [shorten(row[0], widths[0]), *row[1:]]
        return GAP.join(map(padded, fitted, widths, aligns)).rstrip()

    return "\n".join([line(header), rule, *(line(row) if row else rule for row in rows)])


def markdown_grid(header: Sequence[str], rows: Sequence[Sequence[str]], aligns: str) -> str:
    """A GitHub-flavoured table; rules are left out, "|" in cells is escaped."""
    marks = ["---:" if align == "r" else ":---" for align in aligns]
    lines = [header, marks, *(row for row in rows if row)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
