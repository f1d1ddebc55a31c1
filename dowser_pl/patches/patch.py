"""A patch: the sparse difference tuned - base as one safetensors file.

A tuned tensor NAME (its name in the files that `save_pretrained` writes) is two entries: `NAME.mask`, packed bits
that say which entries belong to the patch, and `NAME.values`, the tuned values of those in the order of the flat
index. A tensor that belongs to the patch as a whole has `NAME.values` only, in its own shape. What was tuned, from
which base and how is JSON under one metadata key, with a digest of each of these tensors and one of all of it, which
are checked when they are read. Tuned values, not differences, so that a patched tensor has the bits of the tuned one.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dowser_pl.errors import DowserError, nearest_path
from dowser_pl.files.atomic import atomic_path
from dowser_pl.files.digests import digest as tensor_digest
from dowser_pl.files.sealed import Kind, Sealed, seal
from dowser_pl.functional.masks import unpack
from dowser_pl.masking.base_model import Change
from dowser_pl.patches.safetensors_file import as_bits, dtype_name

__all__ = [
    "KIND",
    "Patch",
    "exchange",
    "save_patch",
    "tensor_digest",
]

KIND = Kind(
    "dowser_pl_patch",
    "patch",
    "patch",
    1,
    cure="copy or make it again",
    other="name a file that `patch diff` or `fit` of this version wrote",
)
_FIELDS = ("base", "config", "created_by", "method", "scores", "versions")
_TENSOR_FIELDS = {"base_sha256", "dtype", "runtime", "shape"}
_SET_BITS = torch.tensor([value.bit_count() for value in range(256)])


@torch.no_grad()
def exchange(tensor: Tensor, change: Change) -> Tensor:
    """Put the values of a change into a tensor of its shape and dtype, in place and bit for bit.

    Returns:
        What stood there, shaped like `change.values`, on the CPU.
    """
    stored, new = as_bits(tensor), as_bits(change.values).to(tensor.device)
    if change.mask is None:
        old = stored.clone()
        stored.copy_(new)
    else:
        mask = unpack(change.mask.to(tensor.device), change.shape)
        old = stored[mask]
        stored[mask] = new
    return old.cpu().view(tensor.dtype)


def save_patch(path: str | Path, changes: Mapping[str, Change], head: Mapping[str, Any]) -> None:
    """Write a patch atomically; the same content gives the same bytes.

    Args:
        path: the file; its folder is made.
        changes: name in the files of the model -> what changes.
        head: any of `base` (`model`, `fingerprint`, `generation`: see `answer_ends`), `method`, `config`,
            `scores`, `versions` and `created_by`, JSON-able; what is missing is written as null.

    Raises:
        DowserError: if a change does not fit itself, a value is not finite, or the head has a field that is none.
        OSError: if the disk is full.
    """
    unknown = sorted(set(head) - set(_FIELDS))
    if unknown:
        raise DowserError(f"a patch has no field {unknown[0]!r}, expected some of: {', '.join(_FIELDS)}")
    tensors: dict[str, Tensor] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, change in changes.items():
        _check(name, change)
        _check_finite(name, change.values)
        tensors[f"{name}.values"] = change.values.detach().contiguous()
        if change.mask is not None:
            tensors[f"{name}.mask"] = change.mask.contiguous()
        described[name] = {
            "base_sha256": change.base_sha256,
            "dtype": dtype_name(change.values.dtype),
            "runtime": change.runtime,
            "shape": list(change.shape),
        }
    base = {"fingerprint": None, "model": None} | dict(head.get("base") or {})
    content = dict.fromkeys(_FIELDS) | dict(head) | {"base": base, "tensors": described}
    with atomic_path(path, needed_bytes=sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        save_file(tensors, temporary, seal(KIND, content, tensors))


class Patch:
    """A patch file, opened: the head is read, the tensors are read one by one when asked for.

    Attributes:
        path: the file.
        head: `base`, `method`, `config`, `scores`, `versions`, `created_by`, `tensors`, `format`.
        names: of the tensors it changes, sorted.
        has_digests: false for files of versions that wrote none.
    """

    def __init__(self, file: Sealed, finite: bool = True) -> None:
        self.path = file.path
        self.head = _parse(file)
        self.names = tuple(sorted(self.head["tensors"]))
        self.has_digests = file.has_digests
        self._file = file
        self._finite = finite

    @classmethod
    def open(cls, path: str | Path, finite: bool = True) -> "Patch":
        """Open a file that `save_patch` wrote; use it in a `with` block, or leave closing to Python.

        Args:
            path: the file.
            finite: refuse values that are NaN or infinite; false for what stood in a base, which has what it has.

        Raises:
            DowserError: if there is none, it is damaged, or it is something else.
        """
        path = Path(path)
        if not path.is_file():
            raise DowserError(f"there is no patch file {path}{nearest_path(path)}; `patch diff` and `fit` write one")
        file = Sealed(path, KIND)
        file.tell()
        return cls(file, finite)

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def num_entries(self, name: str) -> int:
        """How many entries of a tensor belong to the patch; reads the header only."""
        return math.prod(self._file.shape(f"{name}.values"))

    def change(self, name: str) -> Change:
        """Read what the patch does to one tensor.

        Raises:
            DowserError: if the file is damaged, or a value is not finite.
        """
        described, file = self.head["tensors"][name], self._file
        mask = file.read(f"{name}.mask") if f"{name}.mask" in file.names() else None
        values = file.read(f"{name}.values")
        change = Change(tuple(described["shape"]), mask, values, described["base_sha256"], described["runtime"])
        try:
            if dtype_name(values.dtype) != described["dtype"]:
                raise DowserError(f"{name}: got {dtype_name(values.dtype)} values, expected {described['dtype']}")
            _check(name, change)
        except ValueError as error:
            raise file.damaged(str(error)) from error
        for kind, tensor in (("mask", mask), ("values", values)):
            if tensor is not None:
                file.verify(f"{name}.{kind}", tensor)
        if self._finite:
            _check_finite(f"{self.path}: {name}", values)
        return change

    def check(self) -> None:
        """Read all of it, one tensor after the other.

        Raises:
            DowserError: as `change`.
        """
        for name in self.names:
            self.change(name)


def _parse(file: Sealed) -> dict[str, Any]:
    head = file.head
    described = head.get("tensors")
    if not isinstance(described, dict):
        described = {}
    needed = {f"{name}.values" for name in described}
    whole = set(head) >= {*_FIELDS, "tensors"} and all(set(entry) >= _TENSOR_FIELDS for entry in described.values())
    if not whole or not needed <= file.names() <= needed | {f"{name}.mask" for name in described}:
        raise file.damaged("its head and its tensors do not belong together")
    return head


def _check_finite(what: str, values: Tensor) -> None:
    """Refuse NaN and infinity, which make every answer of a model NaN."""
    if not values.is_floating_point():
        return
    odd = ~torch.isfinite(values.float() if values.element_size() == 1 else values)
    if bool(odd.any()):
        first = values[odd].flatten()[0].item()
        raise DowserError(
            f"{what} has {int(odd.sum())} values that are not finite (the first is {first}), expected numbers; make "
            "the patch from a run or a checkpoint before that"
        )


def _check(name: str, change: Change) -> None:
    """Refuse bits, values and a shape that do not fit each other."""
    mask, values, numel = change.mask, change.values, math.prod(change.shape)
    if mask is None:
        if tuple(values.shape) != tuple(change.shape):
            raise DowserError(f"{name}: got values of shape {tuple(values.shape)}, expected the whole {change.shape}")
        return
    if mask.dtype != torch.uint8 or tuple(mask.shape) != (-(-numel // 8),):
        got = f"{dtype_name(mask.dtype)} of shape {tuple(mask.shape)}"
        raise DowserError(f"{name}: got a mask that is {got}, expected packed bits, ({-(-numel // 8)},) uint8")
    if numel % 8 and int(mask[-1]) >> numel % 8:
        raise DowserError(f"{name}: got a mask with bits behind entry {numel}, expected none")
    entries = int(torch.bincount(mask, minlength=256) @ _SET_BITS)
    if tuple(values.shape) != (entries,):
        raise DowserError(f"{name}: got values of shape {tuple(values.shape)}, expected ({entries},), one per set bit")
