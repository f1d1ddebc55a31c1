"""Trainable entries of matrices that are spread over the processes: each process trains those that lie with it.

Legend: O outputs, I inputs of a matrix, k trainable entries of it, all on this process.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dowser_pl.distributed.checkpoint import Stored
from dowser_pl.distributed.tensors import added, cut, flat_range, shape_of
from dowser_pl.functional.masks import pack, unpack
from dowser_pl.masking.compact import TrainableEntries
from dowser_pl.masking.shared_state import stored_state
from dowser_pl.masking.spread_protection import SpreadProtection

__all__ = ["ShardedEntries", "local_state"]


class ShardedEntries(SpreadProtection, TrainableEntries):
    """As :class:`TrainableEntries`, of the rows (FSDP2) or flat positions (FSDP1) that this process holds.

    All processes must make it, and call :meth:`verify`, :meth:`frozen_digests` and :meth:`state_dict`, together.

    Args:
        weights: run-time name -> parameter that is spread over the processes.
        masks: name -> bool of what is here, in its shape.
    """

    def _counted(self, counts: dict[str, int]) -> dict[str, int]:
        return dict(zip(counts, added(counts.values()), strict=True))


def local_state(entry: Mapping[str, Any], weight: Tensor) -> dict[str, Tensor]:
    """What of a matrix' state in a checkpoint concerns the entries that this process holds.

    Args:
        entry: packed ``mask`` and the (k,) tensors of the whole matrix.
        weight: the matrix, spread over the processes.
    """
    if isinstance(entry["mask"], Stored):
        return stored_state(entry, weight)
    mask = unpack(entry["mask"], shape_of(weight))
    here = cut(mask, weight)
    first = int(torch.count_nonzero(mask.view(-1)[: flat_range(weight).start]))
    part = slice(first, first + int(torch.count_nonzero(here)))
    return {"mask": pack(here)} | {
        kind: (values[part] if values.dim() == 1 else cut(values, weight)).clone()  # a number per entry of the matrix
        for kind, values in entry.items()
        if kind != "mask"
    }
