"""The files of VLMEvalKit: `<model>_<dataset>_acc.csv`, `_score.csv` or `_score.json`, one for each model and data set.

Of a table every number has the name of its column, after the words of its row if there are several ("test|Overall").
Shares are told as they are by sets of multiple choice, and in percent by others; the file does not say which. Single
answers lie beside it, under names that depend on the set and on its judge, with their score as `hit`, `eval_score` or
`score`; `status.json` has commit and judge, of versions that write it.
"""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dowser_pl.errors import DowserError
from dowser_pl.reporting.answers import Row
from dowser_pl.reporting.harnesses.measured import Measured, Value, leads_to

__all__ = ["ENDINGS", "read_vlmevalkit"]

ENDINGS = ("_acc.csv", "_acc.json", "_score.csv", "_score.json")
_ANSWERS = ("_results", "_*_result", "_auxmatch", "")  # the last: as the model gave them, without scores
_TABLES = ("xlsx", "tsv", "json")
_SCORES = ("hit", "eval_score", "score")
_LONGEST_CELL = 2**24
Table = list[dict[str, Any]]


def read_vlmevalkit(path: Path) -> tuple[str, dict[str, Measured]]:
    """The name of the model, and its one task.

    Args:
        path: of the scores.

    Raises:
        DowserError: the file is not as VLMEvalKit writes it, or what lies beside it cannot be read.
    """
    stem = path.name.removesuffix(next(ending for ending in ENDINGS if path.name.endswith(ending)))
    status = _status(path.parent)
    model = _model(path, stem, status)
    dataset = stem.removeprefix(f"{model}_")
    values = _values(path)
    rows, count = [], None
    for table in _tables(path.parent, stem):
        count = len(table)
        if found := _scored(table, values):
            rows, values = _rows(table), found
            break
    told = (status.get("datasets") or {}).get(dataset) or {}
    commit = status.get("commit")
    protocol = {
        "name": "VLMEvalKit",
        "scorer": f"VLMEvalKit {commit}" if commit else "VLMEvalKit",
        "judge": told.get("judge_model"),
    }
    return model, {dataset: Measured(str(path), values, protocol, count, rows)}


def _status(folder: Path) -> dict[str, Any]:
    file = folder / "status.json"
    found = _json(file) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def _model(path: Path, stem: str, status: dict[str, Any]) -> str:
    """VLMEvalKit writes into `<work dir>/<model>/`, or a folder of that which has the time as its name."""
    folder = path.absolute().parent
    for name in (status.get("model_name"), folder.name, folder.parent.name):
        if name and stem.startswith(f"{name}_"):
            return str(name)
    raise DowserError(
        f"{path}: which part of the name is the model cannot be told. Expected the file where VLMEvalKit wrote it, in "
        "a folder that has the name of the model"
    )


def _values(path: Path) -> dict[str, Value]:
    if path.suffix == ".csv":
        table = _csv(path, ",")
    else:
        content = _json(path)
        table = content if isinstance(content, list) else [content]
    if not table or not all(isinstance(row, dict) for row in table):
        raise DowserError(f"{path} has no table of scores, expected what VLMEvalKit writes")
    found = {}
    for row in table:
        words = [str(word) for word in row.values() if _number(word) is None and not isinstance(word, list | dict)]
        before = [word for word in words if len(table) > 1 and word not in ("", "none")]
        for column, cell in _cells(row):
            found["|".join([*before, column])] = Value(cell)
    return found


def _cells(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for column, cell in row.items():
        parts = cell if isinstance(cell, list) else [cell]  # Bleu: of 1 to 4 words
        for place, part in enumerate(parts, 1):
            number = _number(part)
            if number is not None:
                yield (f"{column}{place}" if isinstance(cell, list) else column), number


def _number(cell: Any) -> float | None:
    try:
        number = float(cell == "True" if cell in ("True", "False") else cell)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _tables(folder: Path, stem: str) -> Iterator[Table]:
    """Tables with a row for each question, those with scores first."""
    for ending in _ANSWERS:
        for kind in _TABLES:
            for path in sorted(folder.glob(f"{_plain(stem)}{ending}.{kind}")):
                yield _table(path)


def _plain(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _table(path: Path) -> Table:
    if path.suffix == ".xlsx":
        return _sheet(path)
    found = _csv(path, "\t") if path.suffix == ".tsv" else _json(path)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise DowserError(f"{path} has no row for each question, expected a list of objects")
    return found


def _sheet(path: Path) -> Table:
    try:
        from openpyxl import load_workbook  # noqa: PLC0415 - who has no such file does without it
    except ImportError as error:
        raise DowserError(
            f"{path} is a table of Excel, for which openpyxl is needed. Fix: pip install openpyxl, or let VLMEvalKit "
            "write PRED_FORMAT=tsv"
        ) from error
    book = load_workbook(path, read_only=True, data_only=True)
    try:
        header, *rows = book.worksheets[0].iter_rows(values_only=True)
    finally:
        book.close()
    return [dict(zip(map(str, header), row, strict=True)) for row in rows]


def _csv(path: Path, delimiter: str) -> Table:
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter=delimiter))
    except (csv.Error, ValueError) as error:
        raise DowserError(f"{path} is not a table as VLMEvalKit writes it: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DowserError(f"{path} is not valid JSON: {error}") from error


def _scored(table: Table, values: dict[str, Value]) -> dict[str, Value] | None:
    """The scores, with the single ones that lead to them; None where the table has none such."""
    for column in _SCORES:
        cells = [_number(row.get(column)) for row in table]
        singles = tuple(cell for cell in cells if cell is not None)
        reached = [name for name, value in values.items() if _is_mean(singles, value.score)]
        if reached and len(singles) == len(table):
            return values | {name: replace(values[name], singles=singles) for name in reached}
    return None


def _is_mean(singles: tuple[float, ...], score: float) -> bool:
    return leads_to(singles, score) or leads_to(singles, score / 100)


def _rows(table: Table) -> list[Row]:
    return [
        {
            "id": str(row.get("index", place)),
            "question": str(row.get("question", "")),
            "references": [str(row.get("answer", ""))],
            "prediction": str(row.get("prediction", "")),
        }
        for place, row in enumerate(table)
    ]
