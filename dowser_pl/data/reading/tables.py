"""Tables as rows, through the library `datasets`: Parquet, folders of `save_to_disk`, and data sets of the hub.

`datasets` keeps a table in an Arrow file and maps it into memory, so that any row is at hand and none is held. A folder
of `save_to_disk` is such files already; Parquet and data sets of the hub are written as such once, into the cache of
`datasets` (HF_HOME), and found there again. So rows are shuffled, and runs resumed, as with any other file. The
streams of `datasets` are not used: they know no row by its number.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import torch

from dowser_pl.data.reading.sources import NamedRow, Rows, named
from dowser_pl.errors import DowserError

HUB = "hub:"
_HUB_NAME = re.compile(r"hub:(?P<path>[^:@]+)(:(?P<name>[^:@]+))?(@(?P<revision>[^:@]+))?")
_SPLIT = re.compile(r"(?<![a-z])(train|valid|validation|val|dev|eval|test)(?![a-z])")  # in the name of a file
_BATCH = 1000  # rows that are turned into Python objects at a time
_SAMPLE = 256  # rows that the digest is of
_STAND_IN = b"\0"  # for the bytes of a picture that is not looked at


class SplitError(DowserError):
    """What is asked for is not there, or was not named."""


def is_table(path: str) -> bool:
    """Whether `read_table` reads this: a data set of the hub, a folder, or a Parquet file."""
    if path.startswith(HUB):
        return True
    place = Path(path).expanduser()
    if place.is_file():
        with place.open("rb") as file:
            return file.read(4) == b"PAR1"
    return place.is_dir()


def read_table(path: str, split: str | None, otherwise: str | None) -> Table:
    """The rows of a table.

    Args:
        path: a Parquet file, a folder of Parquet files or of `save_to_disk`, or `hub:owner/name`, with a
            configuration `hub:owner/name:configuration` and a revision `hub:owner/name@revision` if need be.
        split: which part; None = the only one, or else `otherwise`.
        otherwise: the part that is taken where there are several; None = that has to be said.

    Raises:
        DowserError: `datasets` is not installed or cannot read this, or there is no such split.
    """
    datasets = _library(path)
    find = _on_hub if path.startswith(HUB) else _on_disk
    try:
        name, table = find(datasets, path, split, otherwise)
    except SplitError:
        raise
    except Exception as error:  # of any kind: it reads files, the net and other people's settings
        raise DowserError(
            f"{path}: `datasets` cannot read this: {type(error).__name__}: {str(error).rstrip('.')}. Expected a "
            "Parquet file, a folder of Parquet files, a folder that save_to_disk wrote, or a data set of the hub as "
            "hub:owner/name."
        ) from error
    return Table(table, name)


def choose_split(path: str, names: list[str], split: str | None, otherwise: str | None) -> str:
    """The split that is meant.

    Raises:
        DowserError: there is no such, or there are several and none was named.
    """
    if split is None and len(names) == 1:
        return names[0]
    chosen = otherwise if split is None else split
    if chosen not in names:
        said = "no split was named" if split is None else f"got split: {split}"
        raise SplitError(f"{path} has the splits {names}, {said}. Set `split` beside the path to one of them.")
    return str(chosen)


class Table(Rows):
    """A map-style data set of the library `datasets`.

    Args:
        table: `datasets.Dataset`.
        name: for messages.
    """

    def __init__(self, table: Any, name: str) -> None:
        self._name = name
        self._features = dict(table.features)
        self._labelled = [column for column, feature in self._features.items() if "ClassLabel" in repr(feature)]
        self._table = table.with_format("arrow")
        self._batch: tuple[int, list[dict[str, Any]]] = (-1, [])
        super().__init__(torch.zeros(len(table), dtype=torch.long), "")
        sample = range(0, len(self), max(len(self) // _SAMPLE, 1))
        text = json.dumps([self._plain(self._light(self._table[i : i + 1])[0]) for i in sample], default=str)
        self.digest = f"{zlib.crc32(text.encode()):08x}-{len(self)}"

    def entry(self, number: int) -> tuple[str, Any]:
        """Where a row stands, as `Rows.entry` says."""
        (row,) = self._table[number : number + 1].to_pylist()
        return self._place(number), self._plain(row)

    def light(self, number: int) -> NamedRow:
        """A row as `Rows.light` gives it; quick where rows are asked for in order."""
        start = number // _BATCH * _BATCH
        if self._batch[0] != start:
            self._batch = start, self._light(self._table[start : start + _BATCH])
        row = self._plain(self._batch[1][number - start])
        self.sizes[number] = len(str(row))
        return named(self._place(number), row)

    def __getstate__(self) -> dict[str, Any]:
        """For workers that do not share memory."""
        return self.__dict__ | {"_batch": (-1, [])}

    def _place(self, number: int) -> str:
        return f"{self._name} row {number + 1}"

    def _plain(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row as it would stand in a JSON file: no nulls that only say that other rows have this column."""
        row = {key: value for key, value in row.items() if value is not None and not key.startswith("__index_level_")}
        for column in set(self._labelled) & row.keys():
            row[column] = _with_names(self._features[column], row[column])
        for column in {"conversations", "messages"} & row.keys():
            row[column] = _turned(row[column])
        return row

    def _light(self, table: Any) -> list[dict[str, Any]]:
        """Rows of an Arrow table, the pictures in columns of their own left unread."""
        columns = {}
        for name, column in zip(table.column_names, table.columns, strict=True):
            columns[name] = _stand_ins(column)
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _library(path: str) -> Any:
    try:
        import datasets  # noqa: PLC0415 - optional, and it takes seconds
    except ImportError as error:
        raise DowserError(
            f"{path} is read by the library `datasets`, which is not installed ({error}). Install it with "
            'pip install "dowser_pl[datasets]", or give a JSON or JSONL file.'
        ) from error
    return datasets


def _on_disk(datasets: Any, path: str, split: str | None, otherwise: str | None) -> tuple[str, Any]:
    place = Path(path).expanduser().resolve()
    if any((place / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
        found = datasets.load_from_disk(str(place))
        if not isinstance(found, dict):
            if split is not None:
                choose_split(path, [] if found.split is None else [str(found.split)], split, None)
            return place.name, found
        chosen = choose_split(path, list(found), split, otherwise)
        return f"{place.name}[{chosen}]", found[chosen]
    parts = {"train": [place]} if place.is_file() else _parts(place)
    if not parts:
        raise SplitError(
            f"{path} is a folder with neither Parquet files nor what save_to_disk writes (dataset_info.json or "
            "dataset_dict.json). Give the file itself if the rows are JSON."
        )
    chosen = choose_split(path, list(parts), split, otherwise)
    table = datasets.load_dataset("parquet", data_files=[str(file) for file in parts[chosen]], split="train")
    return place.name if place.is_file() else f"{place.name}[{chosen}]", table


def _parts(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files of a folder by split, which their names say as the hub has it.

    `train-00000-of-00002.parquet` and `train/0000.parquet` are of "train", and so is a file that does not say. Where
    one split lies in several folders, as with several configurations, they are told apart: "folder/train".
    """
    found: dict[tuple[str, str], list[Path]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        inside = list(file.relative_to(folder).parts[:-1])
        numbered = re.fullmatch(r"(.+?)-\d+-of-\d+.*", file.stem)
        if numbered is not None:
            split = numbered[1]
        elif inside and (file.stem.isdigit() or _SPLIT.search(inside[-1])):
            split = inside.pop()
        else:
            split = file.stem if _SPLIT.search(file.stem) else "train"
        found.setdefault(("/".join(inside), split), []).append(file)
    names = [split for _, split in found]
    return {
        split if names.count(split) == 1 else f"{above}/{split}".lstrip("/"): files
        for (above, split), files in found.items()
    }


def _on_hub(datasets: Any, path: str, split: str | None, otherwise: str | None) -> tuple[str, Any]:
    found = _HUB_NAME.fullmatch(path)
    if found is None:
        raise SplitError(f"got {path}, expected hub:owner/name, hub:owner/name:configuration or ...@revision.")
    if split is None:  # one that is named is found in the cache as well, without the net
        names = datasets.get_dataset_split_names(found["path"], found["name"], revision=found["revision"])
        split = choose_split(path, names, None, otherwise)
    table = datasets.load_dataset(found["path"], found["name"], revision=found["revision"], split=split)
    return f"{path}[{split}]", table


def _with_names(feature: Any, value: Any) -> Any:
    """Class numbers as the names they stand for."""
    if value is None:
        return None
    if isinstance(feature, dict):
        return {key: _with_names(feature[key], one) for key, one in value.items()}
    if hasattr(feature, "int2str"):
        return None if value < 0 else feature.int2str(value)  # -1: not told, as in test splits
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return [_with_names(inner, one) for one in value] if isinstance(value, list) and inner is not None else value


def _turned(turns: Any) -> Any:
    """Columns of turns, as older versions of `datasets` kept lists of objects, as a list of turns."""
    if not isinstance(turns, dict) or not all(isinstance(said, list) for said in turns.values()):
        return turns
    return [dict(zip(turns, turn, strict=True)) for turn in zip(*turns.values(), strict=True)]


def _stand_ins(column: Any) -> list[Any]:
    """The values of an Arrow column, with stand-ins for the bytes of pictures: one, or a list of them, per row."""
    import pyarrow  # noqa: PLC0415 - comes with `datasets`
    from pyarrow import compute, types  # noqa: PLC0415

    kind = column.type
    if types.is_list(kind) or types.is_large_list(kind):
        if not _is_picture(pyarrow, kind.value_type):
            return list(column.to_pylist())
        values = iter(_stand_ins(compute.list_flatten(column)))
        lengths = compute.list_value_length(column).to_pylist()
        return [None if length is None else [next(values) for _ in range(length)] for length in lengths]
    if not _is_picture(pyarrow, kind):
        return list(column.to_pylist())
    if types.is_struct(kind):
        pictures = zip(
            compute.is_valid(column).to_pylist(),
            _stand_ins(compute.struct_field(column, "bytes")),
            compute.struct_field(column, "path").to_pylist(),
            strict=True,
        )
        return [{"bytes": content, "path": path} if there else None for there, content, path in pictures]
    return [_STAND_IN if there else None for there in compute.is_valid(column).to_pylist()]


def _is_picture(pyarrow: Any, kind: Any) -> bool:
    if pyarrow.types.is_struct(kind):
        return {"bytes", "path"} == {field.name for field in kind}
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))
