"""The weights of a model folder in either form, safetensors or pickled (`pytorch_model.bin`), a tensor at a time."""

import json
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.models.layouts import parts_of
from dowser_pl.patches.conversion import new_header
from dowser_pl.patches.model_folder import PICKLED, SINGLE, find_pickled, shards_in
from dowser_pl.patches.safetensors_file import (
    CODES,
    DTYPES,
    METADATA,
    as_bytes,
    raw_bytes,
    read,
    read_header,
    read_slots,
)

__all__ = ["Shard", "Stored", "shards_of"]


@dataclass(frozen=True)
class Stored:
    """One tensor of a folder.

    Attributes:
        name: in the files, with that of its part in front where the folder has parts.
        code: its dtype as a safetensors file has it ("BF16").
        shape: its shape.
        nbytes: how many bytes.
        read: gives the tensor, on the CPU; not to be written into.
        raw: gives its bytes.
    """

    name: str
    code: str
    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[], Tensor]
    raw: Callable[[], bytes | memoryview]

    def size_as(self, code: str) -> int:
        """Bytes that it takes in a dtype."""
        return self.nbytes if code == self.code else math.prod(self.shape) * DTYPES[code].itemsize


@dataclass(frozen=True)
class Shard:
    """One file of weights of a model folder.

    Attributes:
        file: its name as a safetensors file, with the folder of its part in front.
        prefix: what its names lack of those of the tensors.
        tensors: name -> tensor, in the order in which they lie.
        header: what stands before them; for a pickled file, what a safetensors file of them would have there.
    """

    file: str
    prefix: str
    tensors: dict[str, Stored]
    header: bytes

    def header_with(self, codes: dict[str, str]) -> bytes:
        """The header where tensors have these dtypes; the very bytes of the old one where none changes."""
        if all(codes[stored.name] == stored.code for stored in self.tensors.values()):
            return self.header
        kinds = {
            name.removeprefix(self.prefix): (codes[name], each.shape, each.size_as(codes[name]))
            for name, each in self.tensors.items()
        }
        return new_header(kinds, json.loads(self.header).get(METADATA))


def shards_of(folder: Path) -> list[Shard]:
    """The files of the weights of a model, those that transformers reads.

    Raises:
        DowserError: if there are none, or one is missing or damaged.
    """
    found = []
    for prefix, part in parts_of(folder).items():
        place = "" if part == folder else f"{part.name}/"
        pickled = find_pickled(part)
        found += [_unpickled(path, place, prefix) for path in pickled]
        found += [] if pickled else [_shard(path, place, prefix) for path in shards_in(part)]
    return found


def _shard(path: Path, place: str, prefix: str) -> Shard:
    tensors = {
        prefix + name: Stored(
            prefix + name, slot.code, slot.shape, slot.nbytes, partial(read, slot), partial(raw_bytes, slot)
        )
        for name, slot in read_slots(path).items()
    }
    return Shard(place + path.name, prefix, tensors, read_header(path)[0])


def _unpickled(path: Path, place: str, prefix: str) -> Shard:
    tensors = {}
    for name, tensor in _load(path).items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in CODES:
            raise DowserError(f"{name} in {path} is no plain tensor; save the model again with save_pretrained")
        code, shape, nbytes = CODES[tensor.dtype], tuple(tensor.shape), tensor.numel() * tensor.element_size()
        tensors[name] = Stored(prefix + name, code, shape, nbytes, tensor.detach, partial(as_bytes, tensor))
    header = new_header(
        {name: (each.code, each.shape, each.nbytes) for name, each in tensors.items()}, {"format": "pt"}
    )
    order = [name for name in json.loads(header) if name != METADATA]
    return Shard(place + _renamed(path), prefix, {prefix + name: tensors[name] for name in order}, header)


def _load(path: Path) -> dict[str, Any]:
    """Tensors that are read from the disk when used; in files older than 2020, all of one file at once."""
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # not a zip file
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise DowserError(f"{path} holds no readable weights ({error}); copy or download it again") from error
    return dict(content)


def _renamed(path: Path) -> str:
    return (
        SINGLE if path.name == PICKLED else path.name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
    )
