"""A patch: the sparse difference tuned - base as one safetensors file.

A tuned tensor NAME (its name in the files that ``save_pretrained`` writes) is two entries: ``NAME.mask``, packed bits
that say which entries belong to the patch, and ``NAME.values``, the tuned values of those in the order of the flat
index. A tensor that belongs to the patch as a whole has ``NAME.values`` only, in its own shape. What was tuned, from
which base and how is JSON under one metadata key. Tuned values, not differences, so that a patched tensor has the
bits of the tuned one.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dowser_pl.files import atomic_path
from dowser_pl.maths.digests import digest as tensor_digest
from dowser_pl.maths.masks import unpack
from dowser_pl.nearest import nearest_path
from dowser_pl.patches.tensor_file import as_bits, dtype_name

__all__ = ["Change", "Patch", "exchange", "save_patch", "tensor_digest"]

FORMAT = 1
_HEAD = "dowser_pl_patch"
_FIELDS = ("base", "config", "created_by", "method", "scores", "versions")
_TENSOR_FIELDS = {"base_sha256", "dtype", "runtime", "shape"}
_SET_BITS = torch.tensor([value.bit_count() for value in range(256)])


@dataclass(frozen=True, eq=False)
class Change:
    """What a patch does to one tensor.

    Attributes:
        shape: of the tensor.
        mask: packed bits (see ``maths.masks.pack``), uint8 on the CPU; None = the whole tensor.
        values: on the CPU, in the tensor's dtype: (entries,) with a mask, else of ``shape``.
        base_sha256: :func:`tensor_digest` of the whole tensor before the change.
        runtime: its name in the loaded model, if known.
    """

    shape: tuple[int, ...]
    mask: Tensor | None
    values: Tensor
    base_sha256: str
    runtime: str | None = None


@torch.no_grad()
def exchange(tensor: Tensor, change: Change) -> Tensor:
    """Put the values of a change into a tensor of its shape and dtype, in place and bit for bit.

    Returns:
        What stood there, shaped like ``change.values``, on the CPU.
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
        head: any of ``base`` (``model``, ``fingerprint``), ``method``, ``config``, ``scores``, ``versions`` and
            ``created_by``, JSON-able; what is missing is written as null.

    Raises:
        ValueError: if a change does not fit itself or the head has a field that is none.
        OSError: if the disk is full.
    """
    unknown = sorted(set(head) - set(_FIELDS))
    if unknown:
        raise ValueError(f"a patch has no field {unknown[0]!r}, expected some of: {', '.join(_FIELDS)}")
    tensors: dict[str, Tensor] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, change in changes.items():
        _check(name, change)
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
    content = dict.fromkeys(_FIELDS) | dict(head) | {"base": base, "format": FORMAT, "tensors": described}
    # one metadata entry: several are written in random order
    metadata = {_HEAD: json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)}
    with atomic_path(path, needed_bytes=sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        save_file(tensors, temporary, metadata)


class Patch:
    """A patch file, opened: the head is read, the tensors are read one by one when asked for.

    Attributes:
        path: the file.
        head: ``base``, ``method``, ``config``, ``scores``, ``versions``, ``created_by``, ``tensors``, ``format``.
        names: of the tensors it changes, sorted.
    """

    def __init__(self, path: Path, file: Any, head: dict[str, Any]) -> None:
        self.path = path
        self.head = head
        self.names = tuple(sorted(head["tensors"]))
        self._file = file

    @classmethod
    def open(cls, path: str | Path) -> "Patch":
        """Open a file that :func:`save_patch` wrote; use it in a ``with`` block, or leave closing to Python.

        Raises:
            ValueError: if there is none, it is damaged, or it is something else.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"there is no patch file {path}{nearest_path(path)}; `patch diff` and `fit` write one")
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a readable patch ({error}); copy or make it again") from error
        return cls(path, file, _parse(path, (file.metadata() or {}).get(_HEAD, ""), set(file.keys())))

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__(None, None, None)

    def num_entries(self, name: str) -> int:
        """How many entries of a tensor belong to the patch; reads the header only."""
        return math.prod(self._file.get_slice(f"{name}.values").get_shape())

    def change(self, name: str) -> Change:
        """Read what the patch does to one tensor.

        Raises:
            ValueError: if the file is damaged.
        """
        described = self.head["tensors"][name]
        mask = self._file.get_tensor(f"{name}.mask") if f"{name}.mask" in self._file.keys() else None  # noqa: SIM118 - a file, no dict
        values = self._file.get_tensor(f"{name}.values")
        change = Change(tuple(described["shape"]), mask, values, described["base_sha256"], described["runtime"])
        try:
            if dtype_name(values.dtype) != described["dtype"]:
                raise ValueError(f"{name}: got {dtype_name(values.dtype)} values, expected {described['dtype']}")
            _check(name, change)
        except ValueError as error:
            raise ValueError(f"{self.path} is damaged ({error}); copy or make it again") from error
        return change


def _parse(path: Path, text: str, keys: set[str]) -> dict[str, Any]:
    try:
        head = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged (its head is no JSON: {error}); copy or make it again") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        found = head.get("format") if isinstance(head, dict) else None
        raise ValueError(
            f"{path} holds no patch, or one of another version of dowser_pl (format {found}, expected {FORMAT}); name "
            "a file that `patch diff` or `fit` of this version wrote"
        )
    described = head.get("tensors")
    if not isinstance(described, dict):
        described = {}
    needed = {f"{name}.values" for name in described}
    whole = set(head) >= {*_FIELDS, "tensors"} and all(set(entry) >= _TENSOR_FIELDS for entry in described.values())
    if not whole or not needed <= keys <= needed | {f"{name}.mask" for name in described}:
        raise ValueError(f"{path} is damaged (its head and its tensors do not belong together); copy or make it again")
    return head


def _check(name: str, change: Change) -> None:
    """Refuse bits, values and a shape that do not fit each other."""
    mask, values, numel = change.mask, change.values, math.prod(change.shape)
    if mask is None:
        if tuple(values.shape) != tuple(change.shape):
            raise ValueError(f"{name}: got values of shape {tuple(values.shape)}, expected the whole {change.shape}")
        return
    if mask.dtype != torch.uint8 or tuple(mask.shape) != (-(-numel // 8),):
        got = f"{dtype_name(mask.dtype)} of shape {tuple(mask.shape)}"
        raise ValueError(f"{name}: got a mask that is {got}, expected packed bits, ({-(-numel // 8)},) uint8")
    if numel % 8 and int(mask[-1]) >> numel % 8:
        raise ValueError(f"{name}: got a mask with bits behind entry {numel}, expected none")
    entries = int(torch.bincount(mask, minlength=256) @ _SET_BITS)
    if tuple(values.shape) != (entries,):
        raise ValueError(f"{name}: got values of shape {tuple(values.shape)}, expected ({entries},), one per set bit")
