"""A checkpoint's folder read again, by any number of processes: all of it, or of each tensor the rows that are wanted.

Of a tensor's parts those are read that overlap with what is wanted, one after the other, each as a whole: that is
what its digest is of.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import ChunkStorageMetadata, DefaultLoadPlanner, LoadPlan
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from dowser_pl.distributed.checkpoint.layout import FORMAT, PARTS, PLAIN, Reader, is_folder, noted
from dowser_pl.distributed.checkpoint.sealing import of_the_disk, read_file
from dowser_pl.distributed.tensors import covering, is_sharded
from dowser_pl.errors import DowserError
from dowser_pl.files.digests import digest
from dowser_pl.functional.masks import from_rows

__all__ = ["Stored", "is_folder", "open_folder", "read_folder"]


Parts = Mapping[str, tuple[tuple[int, ...], Mapping[int, str]]]
"""Tensor -> its shape, and first row -> digest of each part."""


class Stored:
    """A tensor of a folder that is not read yet.

    Attributes:
        shape: of the whole.
        dtype: of it.
        columns: see `dowser_pl.distributed.checkpoint.Share`.
    """

    def __init__(self, reader: Reader, parts: Parts | None, key: str, columns: int | None) -> None:
        if key not in reader.tensors:
            raise DowserError(
                f"{reader.folder} is damaged: got no tensor {key!r}, expected all that its {PLAIN} names. Copy the "
                "folder again with all its files, or give another checkpoint"
            )
        self._reader, self._key, self.columns = reader, key, columns
        self.shape, self.dtype = reader.tensors[key].size, reader.tensors[key].properties.dtype
        shape, digests = (self.shape, None) if parts is None else parts.get(key, ((), {}))
        self._digests: Mapping[int, str] | None = digests
        if tuple(shape) != tuple(self.shape):
            raise self._damaged(f"shape {tuple(self.shape)}", str(tuple(shape)))

    def dim(self) -> int:
        """The number of dimensions of the whole."""
        return len(self.shape)

    def __len__(self) -> int:
        """Rows of the whole."""
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        """Read these rows, which follow each other."""
        first, end, _ = rows.indices(len(self))
        return self._read((first, *[0] * (self.dim() - 1)), (max(end - first, 0), *self.shape[1:]))

    def whole(self) -> Tensor:
        """Read all of it; a mask as `dowser_pl.functional.masks.pack` gives it."""
        everything = self._read((0,) * self.dim(), tuple(self.shape))
        return everything if self.columns is None else from_rows(everything, self.columns)

    def part_of(self, like: Tensor) -> Tensor:
        """Read what this process holds of a tensor of the same shape, in the form in which it holds it."""
        if not is_sharded(like):
            return self.whole()
        rows, part = covering(like)
        return self[rows] if part is None else self[rows].view(-1)[part]

    def _read(self, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        found = torch.empty(sizes, dtype=self.dtype)
        if found.numel() == 0:
            return found
        wanted = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        items = create_read_items_for_chunk_list(self._key, self._reader.tensors[self._key], [wanted])
        if sum(math.prod(item.lengths) for item in items) != found.numel():
            raise self._damaged("too few parts", f"{sizes} of it")
        for item in items:
            part = self._part(self._reader.tensors[self._key].chunks[item.storage_index.index or 0])
            _cut(found, item.dest_offsets, item.lengths).copy_(_cut(part, item.storage_offsets, item.lengths))
        return found

    def _part(self, chunk: ChunkStorageMetadata) -> Tensor:
        """All that one process wrote of the tensor, compared with its digest."""
        alone = replace(self._reader.tensors[self._key], chunks=[chunk])
        items = create_read_items_for_chunk_list(self._key, alone, [chunk])
        try:
            part = torch.empty(chunk.sizes, dtype=self.dtype)
            self._reader.read_data(LoadPlan(items), _Into(part)).wait()
        except Exception as error:
            if of_the_disk(error):
                raise
            raise self._damaged(type(error).__name__, f"{tuple(chunk.sizes)} of it") from error
        if self._digests is not None:
            first = chunk.offsets[0] if len(chunk.offsets) else 0
            got, expected = digest(part), str(self._digests.get(first))
            if got != expected:
                raise self._damaged(f"digest {got[:12]}, from row {first} on,", expected[:12])
        return part

    def _damaged(self, got: str, expected: str) -> DowserError:
        return DowserError(
            f"{self._reader.folder} is damaged: got {got} for the tensor {self._key!r}, expected {expected}. Copy the "
            "folder again with all its files, or give another checkpoint"
        )


def _cut(tensor: Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> Tensor:
    return tensor[tuple(slice(first, first + length) for first, length in zip(offsets, lengths, strict=True))]


class _Into(DefaultLoadPlanner):
    """Puts all that is read into one tensor."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self._tensor = tensor

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:  # noqa: ARG002 - there is one
        """Where to put it."""
        return self._tensor


def open_folder(path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
    """A checkpoint in which tensors of the folder are `Stored`: read when they are asked for.

    Raises:
        DowserError: if it is not one, or files are missing.
    """
    folder = Path(path)
    reader = Reader(folder)
    try:
        plain = read_file(folder / PLAIN, weights_only)
    except (ValueError, OSError) as error:
        raise DowserError(
            f"{folder} is not a whole checkpoint: got no readable {PLAIN} in it ({type(error).__name__}: {error}), "
            "expected the folder as `fit` wrote it. Copy it again with all its files, or give another checkpoint"
        ) from error
    found = {key: plain.pop(key, None) for key in FORMAT} if isinstance(plain, dict) else {}
    if found != FORMAT:
        raise DowserError(
            f"{folder} was written by another program or version: got {found}, expected {FORMAT}; resume with what "
            "wrote it, or give another checkpoint"
        )
    parts = plain.pop(PARTS, None)
    return _filled(plain, lambda key, columns: Stored(reader, parts, key, columns), {})


def read_folder(path: str | Path, weights_only: bool | None = None, without: Collection[str] = ()) -> dict[str, Any]:
    """A checkpoint as one process writes it into a file, whole and in host memory.

    Args:
        path: the folder.
        weights_only: as of `torch.load`.
        without: what of it is not needed, and left out.

    Raises:
        DowserError: as `open_folder`.
    """
    opened = open_folder(path, weights_only)
    return _whole({key: value for key, value in opened.items() if key not in without}, {})


def _filled(value: Any, stored: Callable[[str, int | None], Stored], known: dict[str, Stored]) -> Any:
    """The value with tensors instead of notes."""
    found = noted(value)
    if found is not None:
        return known.setdefault(found[0], stored(*found))
    if isinstance(value, dict):
        return {name: _filled(each, stored, known) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, stored, known) for each in value]
    return value


def _whole(value: Any, known: dict[int, Tensor]) -> Any:
    if isinstance(value, Stored):
        if id(value) not in known:
            known[id(value)] = value.whole()
        return known[id(value)]
    if isinstance(value, dict):
        return {name: _whole(each, known) for name, each in value.items()}
    if isinstance(value, list):
        return [_whole(each, known) for each in value]
    return value
