"""Trainable entries of matrices that are spread over the processes: each process trains those in its own rows.

Entries lie on the processes in the order of their flat positions, so values, moments and masks put together in the
order of the processes are those of one process; checkpoints hold them so, and any number of processes can go on from
there. No process holds more than its share, but for one matrix at a time while the first gathers a checkpoint.

Legend: O outputs, I inputs of a matrix, k trainable entries of it, all on this process.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dowser_pl.checkpointing import Stored
from dowser_pl.maths.masks import pack, unpack
from dowser_pl.shards import added, collect, cut, digests_in_turns, local, local_rows
from dowser_pl.training.entries import TrainableEntries
from dowser_pl.training.protection import Changes
from dowser_pl.training.shared_state import stored_state

__all__ = ["ShardedEntries", "local_state"]


class ShardedEntries(TrainableEntries):
    """As :class:`TrainableEntries`, of the rows that this process holds.

    All processes must make it, and call :meth:`verify`, :meth:`frozen_digests` and :meth:`state_dict`, together.

    Args:
        weights: run-time name -> (all rows, I) parameter, spread over the processes.
        masks: name -> (O, I) bool of the rows that are here.
    """

    together: ClassVar[bool] = True

    def verify(self) -> tuple[Changes, Changes]:
        """See :meth:`TrainableEntries.verify`; entries of all processes are counted."""
        frozen, trainable = super().verify()
        return frozen, Changes(trainable.entries, *added([trainable.changed]))

    def frozen_digests(self) -> dict[str, str]:
        """Name -> content hash of the frozen entries of the whole matrix."""
        parts = (
            (name, weight, local(weight.detach()).masked_fill(self.masks[name], 0))
            for name, weight in self.weights.items()
        )
        return digests_in_turns(parts)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """As of one process, whole, on the first process; elsewhere empty tensors."""
        state = {}
        for name, weight in self.weights.items():
            mask = collect(self.masks[name].flatten())
            state[name] = {
                "mask": pack(mask.view(weight.shape)) if len(mask) else self.packed.bits[name][:0],
                "base": collect(self.base_values(name)),
                "values": collect(self.values(name)),
            }
        return state

    def _counted(self, counts: dict[str, int]) -> dict[str, int]:
        return dict(zip(counts, added(counts.values()), strict=True))


def local_state(entry: Mapping[str, Any], weight: Tensor) -> dict[str, Tensor]:
    """What of a matrix' state in a checkpoint concerns the rows that this process holds.

    Args:
        entry: packed ``mask`` and the (k,) tensors of the whole matrix.
        weight: the matrix, spread over the processes.
    """
    if isinstance(entry["mask"], Stored):
        return stored_state(entry, weight)
    mask = unpack(entry["mask"], weight.shape)
    here = cut(mask, weight)
    first = int(torch.count_nonzero(mask[: local_rows(weight).start]))
    part = slice(first, first + int(torch.count_nonzero(here)))
    return {"mask": pack(here)} | {kind: values[part].clone() for kind, values in entry.items() if kind != "mask"}
