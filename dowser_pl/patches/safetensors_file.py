"""Safetensors files in place: where each tensor lies, and how one is read or written without touching the rest.

The safetensors library writes whole files. To change some entries of a file of many gigabytes, its bytes are copied
and one tensor after the other is put back where it lies, so that all other bytes stay as they are.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dowser_pl.errors import DowserError

__all__ = [
    "CASTABLE",
    "CODES",
    "DTYPES",
    "FLOATING",
    "METADATA",
    "Slot",
    "as_bits",
    "as_bytes",
    "dtype_name",
    "raw_bytes",
    "read",
    "read_header",
    "read_slots",
    "write",
]

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
CASTABLE = {"F16", "BF16", "F32", "F64"}  # floats of 8 bits and below mean nothing without their scales
FLOATING = {DTYPES[code] for code in CASTABLE}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
METADATA = "__metadata__"


@dataclass(frozen=True)
class Slot:
    """The place of one tensor in a file.

    Attributes:
        file: the safetensors file.
        name: of the tensor in it.
        code: its dtype as the file has it ("BF16").
        shape: its shape.
        start: first byte, from the start of the file.
        nbytes: how many bytes.
    """

    file: Path
    name: str
    code: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype in PyTorch.

        Raises:
            DowserError: if PyTorch has none.
        """
        if self.code not in DTYPES:
            raise DowserError(f"{self.name} in {self.file} is {self.code}, expected one of: {', '.join(DTYPES)}")
        return DTYPES[self.code]


def read_slots(path: Path) -> dict[str, Slot]:
    """Name -> where it lies, in the order of the file.

    Raises:
        DowserError: if it is no whole safetensors file.
    """
    header, start = read_header(path)
    size = path.stat().st_size
    slots = [_slot(path, name, entry, start) for name, entry in _parse(path, header).items() if name != METADATA]
    slots.sort(key=lambda slot: (slot.start, slot.nbytes))
    end = start
    for slot in slots:
        if slot.start != end:
            raise DowserError(_damaged(path, f"{slot.name} starts at byte {slot.start}, expected {end}"))
        end += slot.nbytes
    if end != size:
        raise DowserError(_damaged(path, f"it has {size:,} bytes, expected {end:,}"))
    return {slot.name: slot for slot in slots}


def read(slot: Slot) -> Tensor:
    """A copy of one tensor, on the CPU."""
    data = bytearray(slot.nbytes)
    with slot.file.open("rb") as file:
        file.seek(slot.start)
        if file.readinto(data) != slot.nbytes:
            raise DowserError(_damaged(slot.file, f"{slot.name} ends early"))
    flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(slot.dtype).view(slot.shape)


def raw_bytes(slot: Slot) -> bytes:
    """The bytes of one tensor as they lie in the file."""
    with slot.file.open("rb") as file:
        file.seek(slot.start)
        return file.read(slot.nbytes)


def write(slot: Slot, tensor: Tensor) -> None:
    """Put a tensor back where it lies; nothing else of the file changes.

    Raises:
        DowserError: if it is of another shape or dtype.
    """
    if tuple(tensor.shape) != slot.shape or tensor.dtype != slot.dtype:
        got, expected = _kind(tuple(tensor.shape), tensor.dtype), _kind(slot.shape, slot.dtype)
        raise DowserError(f"{slot.name} in {slot.file} cannot hold {got}, expected {expected}")
    with slot.file.open("r+b") as file:
        file.seek(slot.start)
        file.write(as_bytes(tensor))


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes in the order of the flat index, without a copy where the tensor lies so on the CPU."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def as_bits(tensor: Tensor) -> Tensor:
    """The same memory as integers, so that -0.0 and 0.0 differ, NaN equals itself and copies keep every bit."""
    return tensor.detach().view(_BITS[tensor.element_size()])


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype: `bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def read_header(path: Path) -> tuple[bytes, int]:
    """The header, a JSON object as the file has it, and the byte at which the tensors start.

    Raises:
        DowserError: if the file is shorter than its header.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size - 8:
            raise DowserError(_damaged(path, "its header is longer than the file"))
        return file.read(length), 8 + length


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        header = json.loads(content)
    except ValueError as error:
        raise DowserError(_damaged(path, f"its header is no JSON: {error}")) from error
    if not isinstance(header, dict):
        raise DowserError(_damaged(path, "its header is no object"))
    return header


def _slot(path: Path, name: str, entry: Any, start: int) -> Slot:
    try:
        code, shape = str(entry["dtype"]), tuple(int(length) for length in entry["shape"])
        first, last = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise DowserError(_damaged(path, f"its header does not say where {name} lies")) from error
    if code in DTYPES and last - first != math.prod(shape) * DTYPES[code].itemsize:
        raise DowserError(_damaged(path, f"{name} has {last - first} bytes, which is not {code} of shape {shape}"))
    return Slot(path, name, code, shape, start + first, last - first)


def _kind(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{dtype_name(dtype)} of shape {shape}"


def _damaged(path: Path, why: str) -> str:
    return f"{path} is no whole safetensors file ({why}); copy or download it again"
