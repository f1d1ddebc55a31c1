"""JSON and JSONL files as named rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

Row = dict[str, Any]
Parsed = TypeVar("Parsed")


def read_rows(path: str | Path) -> list[tuple[str, Row]]:
    """The rows of a JSON list or of a JSONL file (told apart by content), each with a name for messages.

    Returns:
        ("train.json row 12 (id 000123)", row) or ("train.jsonl line 12 ...", row), counted from 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, not JSON (file:line:column), or not a list of objects.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"No data file at {path} (working directory {Path.cwd()}).")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}. Save the file as UTF-8.") from error
    if re.match(r"\s*\[", text):
        rows = [(f"{path.name} row {i}", row) for i, row in enumerate(_parse(text, path), start=1)]
    else:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
        rows = [(f"{path.name} line {i}", _parse(line, path, i)) for i, line in lines]
    return [(_full_name(name, row), row) for name, row in rows]


def keep_good(
    rows: Iterable[tuple[str, Row]], parse: Callable[[str, Row], Parsed], skip_bad: bool, what: str
) -> list[Parsed]:
    """`parse` all rows; with `skip_bad`, leave out those that raise ValueError and say how many and which.

    Raises:
        ValueError: of the first bad row, or because no row is good.
    """
    good: list[Parsed] = []
    bad: list[str] = []
    for name, row in rows:
        try:
            good.append(parse(name, row))
        except ValueError as error:
            if not skip_bad:
                raise
            bad.append(str(error))
    if bad:
        shown = "\n  ".join([*bad[:20], *(["..."] if len(bad) > 20 else [])])
        message = f"{what}: left out {len(bad)} of {len(bad) + len(good)} rows (skip_bad_rows):\n  {shown}"
        if not good:
            raise ValueError(f"No row is usable. {message}")
        rank_zero_warn(message, category=UserWarning)
    return good


def _parse(text: str, path: Path, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{line + error.lineno - 1}:{error.colno}: not valid JSON: {error.msg}. Expected a JSON list of "
            "objects, or one object per line (JSONL)."
        ) from error


def _full_name(name: str, row: Any) -> str:
    if not isinstance(row, dict):
        raise ValueError(f"{name}: expected an object like {{...}}, got {str(row)[:60]!r}.")
    own = row.get("id", row.get("question_id"))
    return name if own is None else f"{name} (id {own})"
