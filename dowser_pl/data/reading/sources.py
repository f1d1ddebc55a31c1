"""Rows of a file, one at a time: what is in memory is where they are, or little more.

Reading a row is random access, whatever the file is, so that a shuffle, a resumed run and several processes find the
same rows without having gone through those before them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from dowser_pl.errors import DowserError, FileError

Row = dict[str, Any]
NamedRow = tuple[str, Row]
Parsed = TypeVar("Parsed")

_SHOWN = 20  # bad rows are named in a message, the others counted


class Rows(Sequence[NamedRow]):
    """The rows of one file or data set, each with a name for messages.

    A row that cannot be read raises ValueError with its name when it is asked for, so that it can be left out.

    Args:
        sizes: (rows,) how long each row is, in bytes or characters; a cheap sign of which have the most text.
        digest: of what the rows are; equal for equal rows.
    """

    def __init__(self, sizes: torch.Tensor, digest: str) -> None:
        self.sizes = sizes
        self.digest = digest

    @abstractmethod
    def entry(self, number: int) -> tuple[str, Any]:
        """The place of row `number`, such as "train.json row 12" (counted from 1), and what stands there."""

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, number: int) -> NamedRow:  # type: ignore[override]  # no slices
        return named(*self.entry(range(len(self))[number]))

    def light(self, number: int) -> NamedRow:
        """Like `self[number]`, but pictures stored in a table may be stand-ins, which cost nothing to read."""
        return self[number]


class ParsedRows(Sequence[Parsed], Generic[Parsed]):
    """Rows that are parsed when they are asked for.

    Args:
        rows: of a file.
        parse: (name, row) -> what a row becomes; sent to the workers of a data loader.
    """

    def __init__(self, rows: Rows, parse: Callable[[str, Row], Parsed]) -> None:
        self._rows = rows
        self._parse = parse
        self.sizes, self.digest = rows.sizes, rows.digest

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Parsed:  # type: ignore[override]  # no slices
        return _parsed(self._parse, *self._rows[number])


class Selected(Sequence[Parsed], Generic[Parsed]):
    """Some of the rows, under new numbers.

    Args:
        rows: of any kind.
        numbers: of those that are meant, in order.
    """

    def __init__(self, rows: Sequence[Parsed], numbers: Sequence[int]) -> None:
        self._rows = rows
        self._numbers = torch.tensor(numbers, dtype=torch.long)

    @property
    def sizes(self) -> torch.Tensor | None:
        """Sizes of these rows, where they are known; see `Rows`."""
        sizes: torch.Tensor | None = getattr(self._rows, "sizes", None)
        return None if sizes is None else sizes[self._numbers]

    @property
    def digest(self) -> str | None:
        """The digest of the whole file, where it is known; see `Rows`."""
        return getattr(self._rows, "digest", None)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> Parsed:  # type: ignore[override]  # no slices
        return self._rows[int(self._numbers[range(len(self))[number]])]


def keep_good(
    rows: Rows,
    parse: Callable[[str, Row], Any],
    skip_bad: bool,
    what: str,
    numbers: Sequence[int] | None = None,
    light: bool = False,
) -> list[int]:
    """The numbers of the rows that `parse` takes; those that raise ValueError are left out, counted and named.

    Args:
        rows: of a file.
        parse: (name, row) -> anything.
        skip_bad: whether rows may be left out.
        what: the rows are of, for the message.
        numbers: of the rows that are looked at; None = all.
        light: do without the pictures in a table.

    Raises:
        DowserError: of the first bad row unless `skip_bad`; or because no row is good.
    """
    good: list[int] = []
    bad: list[str] = []
    for number in range(len(rows)) if numbers is None else numbers:
        try:
            _parsed(parse, *(rows.light(number) if light else rows[number]))
            good.append(number)
        except ValueError as error:
            if not skip_bad:
                raise
            bad.append(str(error))
    report_left_out(bad, len(good), what)
    return good


def _parsed(parse: Callable[[str, Row], Parsed], name: str, row: Row) -> Parsed:
    """What a row becomes; one of a shape that nobody thought of is refused like any bad row."""
    try:
        return parse(name, row)
    except (ValueError, MemoryError, FileError):  # a bad row already, or no fault of a row
        raise
    except Exception as error:
        raise DowserError(
            f"{name}: cannot be read: {type(error).__name__}: {error}. Change or remove the row; `skip_bad_rows: true` "
            "leaves such rows out and counts them."
        ) from error


def report_left_out(bad: Sequence[str], num_good: int, what: str) -> None:
    """Say how many rows were left out, and which and why.

    Raises:
        DowserError: no row is left.
    """
    if not bad:
        return
    shown = "\n  ".join([*bad[:_SHOWN], *(["..."] if len(bad) > _SHOWN else [])])
    message = f"{what}: left out {len(bad)} of {len(bad) + num_good} rows (skip_bad_rows):\n  {shown}"
    if not num_good:
        raise DowserError(f"No row is usable. {message}")
    rank_zero_warn(message, category=UserWarning)


def named(place: str, row: Any) -> NamedRow:
    """A row with its name: where it stands, and its own id if it has one.

    Raises:
        DowserError: it is no object.
    """
    if not isinstance(row, dict):
        raise DowserError(f"{place}: expected an object like {{...}}, got {str(row)[:60]!r}.")
    own = row.get("id", row.get("question_id"))
    return place if own is None else f"{place} (id {own})", row
