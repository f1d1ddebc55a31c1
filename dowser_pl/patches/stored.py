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
from dowser_pl.patches.conversion import new_header
from dowser_pl.patches.model_folder import PICKLED, SINGLE, find_pickled, find_shards
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
        name: in the files.
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
        file: its name as a safetensors file.
        tensors: name -> tensor, in the order in which they lie.
        header: what stands before them; for a pickled file, what a safetensors file of them would have there.
    """

    file: str
    tensors: dict[str, Stored]
    header: bytes

    def header_with(self, codes: dict[str, str]) -> bytes:
        """The header where tensors have these dtypes; the very bytes of the old one where none changes."""
        if all(codes[stored.name] == stored.code for stored in self.tensors.values()):
            return self.header
        kinds = {name: (codes[name], each.shape, each.size_as(codes[name])) for name, each in self.tensors.items()}
        return new_header(kinds, json.loads(self.header).get(METADATA))


def shards_of(folder: Path) -> list[Shard]:
    """The files of the weights of a model, those that transformers reads.

    Raises:
        DowserError: if there are none, or one is missing or damaged.
    """
    pickled = find_pickled(folder)
    return [_unpickled(path) for path in pickled] if pickled else [_shard(path) for path in find_shards(folder)]


def _shard(path: Path) -> Shard:
    slots = read_slots(path)
    tensors = {
        name: Stored(name, slot.code, slot.shape, slot.nbytes, partial(read, slot), partial(raw_bytes, slot))
        for name, slot in slots.items()
    }
    return Shard(path.name, tensors, read_header(path)[0])


def _unpickled(path: Path) -> Shard:
    tensors = {}
    for name, tensor in _load(path).items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in CODES:
            raise DowserError(f"{name} in {path} is no plain tensor; save the model again with save_pretrained")
        code, shape = CODES[tensor.dtype], tuple(tensor.shape)
        nbytes = tensor.numel() * tensor.element_size()
        tensors[name] = Stored(name, code, shape, nbytes, tensor.detach, partial(as_bytes, tensor))
    kinds = {name: (stored.code, stored.shape, stored.nbytes) for name, stored in tensors.items()}
    header = new_header(kinds, {"format": "pt"})
    order = [name for name in json.loads(header) if name != METADATA]
    return Shard(_renamed(path), {name: tensors[name] for name in order}, header)


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
