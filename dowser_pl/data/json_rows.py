"""JSON and JSONL files as rows, plain or compressed with gzip.

Lines (JSONL) stay on the disk: what is kept is where each begins, 24 bytes a row. A compressed file of lines is
unpacked once, into a temporary file that goes when the process ends. A JSON list can only be read as a whole, so it is
kept in memory, packed.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import tempfile
import weakref
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from dowser_pl.data.packed import PackedRows
from dowser_pl.data.sources import Rows

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_BLOCK = 2**20


def read_json(path: Path) -> Rows:
    """The rows of a JSON list or of a file of lines, told apart by content.

    Raises:
        ValueError: a list is not UTF-8 or not JSON (file:line:column), or a compressed file is damaged.
    """
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
    with _opened(path, compressed) as file:
        is_list = re.match(rb"\s*\[", _read(file, path, 4096).removeprefix(_BOM)) is not None
    if is_list:
        with _opened(path, compressed) as file:
            return JsonList(path, _read(file, path, -1))
    return JsonLines(path, _unpacked(path) if compressed else path)


class JsonList(Rows):
    """A JSON list, in memory.

    Args:
        path: for messages.
        content: of the file.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self._name = path.name
        rows = parse_json(content, str(path), 1)
        self._packed = PackedRows(rows)
        super().__init__(self._packed.sizes, _digest(zlib.crc32(content), len(rows)))

    def entry(self, number: int) -> tuple[str, Any]:
        """See `Rows.entry`."""
        return f"{self._name} row {number + 1}", self._packed[number]


class JsonLines(Rows):
    """One object per line, on the disk; empty lines do not count.

    Args:
        path: of the file, for messages.
        plain: where it lies uncompressed.
    """

    def __init__(self, path: Path, plain: Path) -> None:
        self._path, self._plain = path, plain
        starts: list[int] = []
        sizes: list[int] = []
        lines: list[int] = []
        start = checksum = 0
        with plain.open("rb") as file:
            for number, line in enumerate(file, start=1):
                checksum = zlib.crc32(line, checksum)
                if line.removeprefix(_BOM if number == 1 else b"").strip():
                    starts.append(start)
                    sizes.append(len(line))
                    lines.append(number)
                start += len(line)
            self._state = _state(file)
        self._starts, self._lines = torch.tensor(starts), torch.tensor(lines)
        if plain != path:
            weakref.finalize(self, _remove, plain, os.getpid())
        super().__init__(torch.tensor(sizes), _digest(checksum, len(sizes)))

    def entry(self, number: int) -> tuple[str, Any]:
        """See `Rows.entry`."""
        line = int(self._lines[number])
        with self._plain.open("rb") as file:  # anew, as workers share the place in a file that was open before them
            if _state(file) != self._state:
                raise OSError(f"{self._path} was changed while it was being read. Start the run again.")
            file.seek(int(self._starts[number]))
            content = file.read(int(self.sizes[number]))
        return f"{self._path.name} line {line}", parse_json(content, str(self._path), line)


def parse_json(content: bytes, path: str, line: int) -> Any:
    """What a piece of a file says; `line` is where in the file it begins.

    Raises:
        ValueError: it is not UTF-8 or not JSON, or nested too deeply.
    """
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise ValueError(f"{path}:{line}: not UTF-8 text at byte {error.start}. Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{line + error.lineno - 1}:{error.colno}: not valid JSON: {error.msg}. Expected a JSON list of "
            "objects, or one object per line (JSONL)."
        ) from error
    except RecursionError as error:
        raise ValueError(
            f"{path}:{line}: lists or objects are nested more deeply than the JSON parser goes (about a thousand "
            "levels); rows need fewer than ten. The file is damaged, or not a file of rows."
        ) from error


def _opened(path: Path, compressed: bool) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if compressed else path.open("rb")


def _read(file: BinaryIO, path: Path, size: int) -> bytes:
    try:
        return file.read(size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: the compressed file is damaged or incomplete: {error}. Copy it again.") from error


def _unpacked(path: Path) -> Path:
    """The content of a compressed file, in a temporary file.

    Raises:
        OSError: there is no room for it.
    """
    handle, name = tempfile.mkstemp(prefix="dowser_pl-", suffix=f"-{path.stem}")
    try:
        with os.fdopen(handle, "wb") as plain, _opened(path, True) as file:
            while block := _read(file, path, _BLOCK):
                plain.write(block)
    except BaseException as error:
        Path(name).unlink()
        if isinstance(error, OSError):
            raise OSError(
                f"{path} cannot be unpacked into {Path(name).parent}: {error}. Make room there, or set TMPDIR to a "
                "folder that has it."
            ) from error
        raise
    return Path(name)


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a worker forgets its copy of the rows while others read on
        path.unlink(missing_ok=True)


def _state(file: BinaryIO) -> tuple[int, int]:
    state = os.fstat(file.fileno())
    return state.st_size, state.st_mtime_ns


def _digest(checksum: int, num_rows: int) -> str:
    return f"{checksum:08x}-{num_rows}"
