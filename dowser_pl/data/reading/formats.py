"""Any file of rows: JSON, JSONL, both with gzip, Parquet, folders of `save_to_disk`, and data sets of the hub."""

from __future__ import annotations

import re
from pathlib import Path

from dowser_pl.data.reading.json_rows import read_json
from dowser_pl.data.reading.sources import Rows
from dowser_pl.data.reading.tables import HUB, is_table, read_table
from dowser_pl.errors import DowserError, MissingFileError, nearest_path


def read_rows(path: str | Path, split: str | None = None, otherwise: str | None = None) -> Rows:
    """The rows of a file, told apart by content; they are read when they are asked for.

    Args:
        path: JSON list or lines (also with gzip), Parquet, a folder of Parquet files or of `save_to_disk`, or
            `hub:owner/name` (see `read_table`).
        split: of a table; None = the only one, or else `otherwise`.
        otherwise: the split that is taken where there are several; None = that has to be said.

    Raises:
        FileNotFoundError: there is no such file.
        DowserError: it cannot be read at all: what is wrong with one row is said when that row is asked for.
    """
    if is_table(str(path)):
        return read_table(str(path), split, otherwise)
    place = Path(path).expanduser()
    if not place.is_file():
        hint = f" A data set of the hub is written {HUB}{path}." if re.fullmatch(r"[\w.-]+/[\w-]+", str(path)) else ""
        raise MissingFileError(
            f"No data file at {place} (working directory {Path.cwd()}){nearest_path(place)}. Expected rows as JSON, "
            f"JSONL or Parquet; correct the path.{hint}"
        )
    if split is not None:
        raise DowserError(f"{place} is a file of one part: leave out split: {split}.")
    return read_json(place)


def image_folder(path: str, given: str | None) -> Path:
    """The folder at which relative image paths start: the one that was given, else that of the rows."""
    if given:
        return Path(given).expanduser()
    if path.startswith(HUB):
        return Path()
    place = Path(path).expanduser()
    return place if place.is_dir() else place.parent
