"""JSON and JSONL files as rows, plain or compressed with gzip.

Rows stay on the disk, be they lines (JSONL) or elements of a list: what is kept is where each begins, 24 bytes a row. A
compressed file is unpacked once, into a temporary file that goes when the process ends.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import tempfile
import weakref
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from dowser_pl.data.reading.sources import Rows
from dowser_pl.errors import DowserError, FileError

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_BLOCK = 2**20
_SPACE, _BEGINNING = re.compile(r"[ \t\n\r]*"), re.compile(r"\ufeff?[ \t\n\r]*")


def read_json(path: Path) -> Rows:
    """The rows of a JSON list or of a file of lines, told apart by content.

    Raises:
        DowserError: a list is not UTF-8 or not JSON (file:line:column), or a compressed file is damaged.
    """
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
    with _opened(path, compressed) as file:
        is_list = re.match(rb"\s*\[", _read(file, path, 4096).removeprefix(_BOM)) is not None
    return JsonRows(path, _unpacked(path) if compressed else path, is_list)


class JsonRows(Rows):
    """The elements of a list, or the lines that are not empty, on the disk.

    Args:
        path: of the file, for messages.
        plain: where it lies uncompressed.
        is_list: whether it is one.
    """

    def __init__(self, path: Path, plain: Path, is_list: bool) -> None:
        self._path, self._plain = path, plain
        if plain != path:
            weakref.finalize(self, _remove, plain, os.getpid())
        self._kind = "row" if is_list else "line"
        with plain.open("rb") as file:
            self._state = _state(file)
            places = _Places()
            try:
                (_find_elements if is_list else _find_lines)(file, places)
            except (ValueError, RecursionError) as error:  # the whole at once, which says where in it
                parse_json(plain.read_bytes(), str(path), 1)
                raise DowserError(f"{path}: not a JSON list: {error}.") from error
        self._starts, self._numbers = torch.tensor(places.starts), torch.tensor(places.numbers)
        super().__init__(torch.tensor(places.sizes), f"{places.checksum:08x}-{len(places.sizes)}")

    def entry(self, number: int) -> tuple[str, Any]:
        """Where a row stands, as `Rows.entry` says."""
        place = int(self._numbers[number])
        with self._plain.open("rb") as file:  # anew, as workers share the place in a file that was open before them
            if _state(file) != self._state:
                raise FileError(f"{self._path} was changed while it was being read. Start the run again.")
            file.seek(int(self._starts[number]))
            content = file.read(int(self.sizes[number]))
        return f"{self._path.name} {self._kind} {place}", parse_json(content, str(self._path), place)


@dataclass
class _Places:
    """Where rows are in a file: first byte, bytes and number of each; and a checksum of all that was read."""

    starts: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    checksum: int = 0

    def add(self, start: int, size: int, number: int) -> None:
        self.starts.append(start)
        self.sizes.append(size)
        self.numbers.append(number)


def _find_lines(file: BinaryIO, places: _Places) -> None:
    start = 0
    for number, line in enumerate(file, start=1):
        places.checksum = zlib.crc32(line, places.checksum)
        if line.removeprefix(_BOM if number == 1 else b"").strip():
            places.add(start, len(line), number)
        start += len(line)


def _find_elements(file: BinaryIO, places: _Places) -> None:
    """Go through a list; ValueError or RecursionError where it is none."""
    text = _Window(file, places)
    text.step("[")
    more = text.next() != "]"
    while more:
        text.next()
        start = text.byte
        text.value()
        places.add(start, text.byte - start, len(places.starts) + 1)
        more = text.next() == ","
        if more:
            text.step(",")
    text.step("]")
    if text.next():
        raise DowserError("something follows the list")


class _Window:
    """A part of a JSON text, moved along; it grows where one value takes more.

    Args:
        file: at its beginning.
        places: told the checksum.

    Attributes:
        byte: of the file where the next character begins.
    """

    def __init__(self, file: BinaryIO, places: _Places) -> None:
        self.byte = 0
        self._file, self._places = file, places
        self._utf8, self._json = codecs.getincrementaldecoder("utf-8")(), json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False

    def next(self) -> str:
        """The next character that is no white space, without going past it; nothing at the end."""
        while True:
            space = (_SPACE if self.byte else _BEGINNING).match(self._text, self._at)
            assert space is not None
            self._advance(space.end() - self._at)
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_on()

    def step(self, sign: str) -> None:
        """Go past a sign that must come next."""
        if self.next() != sign:
            raise DowserError(f"{sign!r} is missing")
        self._advance(1)

    def value(self) -> None:
        """Go past a value that must come next."""
        while True:
            try:
                end = self._json.raw_decode(self._text, self._at)[1]
            except json.JSONDecodeError:
                if self._ended:
                    raise
            else:
                after = self._text[end : end + 1]
                if self._ended or (after and after not in ".eE"):  # else it may go on: 12 of 123, 1 of 1.5
                    self._advance(end - self._at)
                    return
            self._read_on()

    def _advance(self, characters: int) -> None:
        self.byte += len(self._text[self._at : self._at + characters].encode())
        self._at += characters

    def _read_on(self) -> None:
        left = self._text[self._at :]
        block = self._file.read(max(_BLOCK, len(left)))
        self._places.checksum = zlib.crc32(block, self._places.checksum)
        self._text, self._at, self._ended = left + self._utf8.decode(block, final=not block), 0, not block


def parse_json(content: bytes, path: str, line: int) -> Any:
    """What a piece of a file says; `line` is where in the file it begins.

    Raises:
        DowserError: it is not UTF-8 or not JSON, or nested too deeply.
    """
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise DowserError(f"{path}:{line}: not UTF-8 text at byte {error.start}. Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise DowserError(
            f"{path}:{line + error.lineno - 1}:{error.colno}: not valid JSON: {error.msg}. Expected a JSON list of "
            "objects, or one object per line (JSONL)."
        ) from error
    except RecursionError as error:
        raise DowserError(
            f"{path}:{line}: lists or objects are nested more deeply than the JSON parser goes (about a thousand "
            "levels); rows need fewer than ten. The file is damaged, or not a file of rows."
        ) from error


def _opened(path: Path, compressed: bool) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if compressed else path.open("rb")


def _read(file: BinaryIO, path: Path, size: int) -> bytes:
    try:
        return file.read(size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DowserError(f"{path}: the compressed file is damaged or incomplete: {error}. Copy it again.") from error


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
            raise FileError(
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
