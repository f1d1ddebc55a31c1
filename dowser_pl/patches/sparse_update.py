"""A patch as flat positions and values, the form in which serving engines take updates of loaded weights in place.

A tuned tensor NAME, by its name in the files of the model, is two entries of one plain safetensors file:
`NAME.indices`, (k,) int32 in rising order, positions in the flattened tensor, and `NAME.values`, (k,) in its dtype, the
tuned values. It takes 4 bytes of positions an entry where a patch takes bits. vLLM's `SparseWeightPatch(name, indices,
values)` is this triple (`vllm/distributed/weight_transfer/sparse_nccl_engine.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import atomic_path
from dowser_pl.files.sealed import Kind, seal
from dowser_pl.functional.masks import unpack
from dowser_pl.masking.base_model import Change

__all__ = ["save_sparse_update"]

_KIND = Kind("dowser_pl_sparse_update", "sparse update", "sparse update", 1, "export it again", "name an exported file")


def save_sparse_update(path: str | Path, changes: Mapping[str, Change], base: Mapping[str, Any]) -> int:
    """Write the file atomically; the same content gives the same bytes.

    Args:
        path: the file; its folder is made.
        changes: name in the files of the model -> what changes.
        base: which model they belong to, JSON-able.

    Returns:
        Entries of all tensors.

    Raises:
        DowserError: if a tensor has too many entries for positions of 32 bits.
        OSError: if the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    for name, change in changes.items():
        tensors[f"{name}.indices"] = _positions(name, change)
        tensors[f"{name}.values"] = change.values.detach().reshape(-1).contiguous()
    head = {"base": dict(base), "shapes": {name: list(change.shape) for name, change in changes.items()}}
    with atomic_path(path, needed_bytes=sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        save_file(tensors, temporary, seal(_KIND, head, tensors))
    return sum(change.values.numel() for change in changes.values())


def _positions(name: str, change: Change) -> Tensor:
    numel = torch.Size(change.shape).numel()
    if numel > torch.iinfo(torch.int32).max:
        raise DowserError(
            f"{name} has {numel:,} entries, expected at most 2^31 - 1: a sparse update has positions of 32 bits. "
            "Fix: export a patch instead (--format patch)"
        )
    if change.mask is None:
        return torch.arange(numel, dtype=torch.int32)
    return unpack(change.mask, change.shape).reshape(-1).nonzero().view(-1).to(torch.int32)
