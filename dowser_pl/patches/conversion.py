"""A safetensors file written again with its floating tensors in other dtypes, holding one tensor at a time."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dowser_pl.patches.safetensors_file import (
    CASTABLE,
    CODES,
    DTYPES,
    FLOATING,
    METADATA,
    Slot,
    as_bits,
    as_bytes,
    raw_bytes,
    read,
    read_header,
    read_slots,
)

__all__ = ["cast", "converted_size", "fits", "new_header", "rewrite", "write_under"]


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in a dtype if it is one of the floating ones that are converted; None leaves it as it is."""
    return tensor.to(dtype) if dtype is not None and tensor.dtype in FLOATING else tensor


def converted_size(slot: Slot, dtype: torch.dtype | None) -> int:
    """Bytes of a tensor after `cast`."""
    return math.prod(slot.shape) * dtype.itemsize if dtype is not None and slot.code in CASTABLE else slot.nbytes


def rewrite(source: Path, destination: Path, dtype: torch.dtype) -> None:
    """Write a file again with its floating tensors in another dtype."""
    slots = read_slots(source).values()
    kinds = {slot.name: (_code(slot, dtype), slot.shape, converted_size(slot, dtype)) for slot in slots}
    write_under(source, destination, new_header(kinds, json.loads(read_header(source)[0]).get(METADATA)))


def new_header(kinds: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str] | None) -> bytes:
    """The header of a file, behind which the tensors follow in the order of their `data_offsets`.

    Args:
        kinds: name -> dtype as a header has it, shape and bytes.
        metadata: what else is said of the file.
    """
    # large items first, as the safetensors library sorts them: each must start at a multiple of its size
    order = sorted(kinds, key=lambda name: -DTYPES.get(kinds[name][0], torch.uint8).itemsize)
    header: dict[str, Any] = {METADATA: metadata} if metadata else {}
    end = 0
    for name in order:
        code, shape, size = kinds[name]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def write_under(source: Path, destination: Path, header: bytes) -> bool:
    """Write a file again under another header, which says in which dtype and order its tensors follow.

    Args:
        source: the file.
        destination: another path.
        header: as `tensor_file.read_header` gives it; one that `fits`.

    Returns:
        Whether every number came over unchanged.
    """
    slots, entries = read_slots(source), _entries(header)
    exact = True
    with destination.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
            slot, code = slots[name], entries[name]["dtype"]
            if code == slot.code:
                file.write(raw_bytes(slot))
                continue
            before = read(slot)
            after = before.to(DTYPES[code])
            exact = exact and torch.equal(as_bits(after.to(before.dtype)), as_bits(before))
            file.write(as_bytes(after))
    return exact


def fits(source: Path, header: bytes) -> bool:
    """Whether a header is of the tensors of a file: the same names and shapes, in dtypes to which they convert."""
    slots, entries = read_slots(source), _entries(header)
    return slots.keys() == entries.keys() and all(
        list(slot.shape) == entries[name]["shape"]
        and (slot.code == entries[name]["dtype"] or {slot.code, entries[name]["dtype"]} <= CASTABLE)
        for name, slot in slots.items()
    )


def _entries(header: bytes) -> dict[str, Any]:
    return {name: entry for name, entry in json.loads(header).items() if name != METADATA}


def _code(slot: Slot, dtype: torch.dtype) -> str:
    return CODES[dtype] if slot.code in CASTABLE else slot.code
