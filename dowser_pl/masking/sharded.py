"""Trainable, frozen and soft entries of sharded matrices: each process trains and keeps those that lie with it.

Entries lie on the processes in the order of their flat positions, so values, moments and masks put together in the
order of the processes are those of one process; checkpoints hold them so, and any number of processes can go on from
there. No process holds more than its share, but for one matrix at a time. What a rule asks of a whole matrix, as the
deviation of its entries, it asks through `reducer`: nothing but such numbers is exchanged beside the gradients.

Legend: O outputs, I inputs of a matrix, k trainable entries of it, on this process or, in checkpoints, of the whole.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dowser_pl.distributed.checkpoint import Share, Stored, extents
from dowser_pl.distributed.collectives import DistributedReducer, all_reduce_counts, gather_to_rank_zero, rank
from dowser_pl.distributed.tensors import (
    covering,
    digests_in_turns,
    flat_range,
    local_rows,
    shape_of,
    shard_like,
    to_local,
)
from dowser_pl.errors import DowserError
from dowser_pl.functional.masks import from_rows, pack, to_rows, unpack
from dowser_pl.functional.selection import Reducer
from dowser_pl.masking.base import SHARED, Changes, Protection
from dowser_pl.masking.compact import CompactEntries
from dowser_pl.masking.dense import DenseEntries
from dowser_pl.masking.soft import SoftEntries

__all__ = [
    "ShardedDenseEntries",
    "ShardedEntries",
    "ShardedProtection",
    "ShardedSoftEntries",
    "entries_as_shares",
    "frozen_of",
    "local_state",
    "stored_state",
]


class ShardedProtection(Protection):
    """Comes before a form of protection whose weights are sharded: all processes must call all of it together."""

    is_sharded: ClassVar[bool] = True

    def verify(self) -> tuple[Changes, Changes]:
        """Count what changed on all processes; see `Protection.verify`."""
        frozen, trainable = super().verify()
        moved, changed = all_reduce_counts([frozen.changed, trainable.changed])
        return Changes(frozen.entries, moved), Changes(trainable.entries, changed)

    def frozen_digests(self) -> dict[str, str]:
        """Name -> content hash of the frozen entries of the whole matrix."""
        parts = (
            (name, weight, to_local(weight).masked_fill(self.masks[name], 0)) for name, weight in self.weights.items()
        )
        return digests_in_turns(parts)

    def state_dict(self, base: bool = True) -> dict[str, dict[str, Tensor]]:
        """The state that one process would have, on the first process; elsewhere empty tensors."""
        state, sent = {}, dict[int, Tensor]()
        for name, weight in self.weights.items():
            mask = gather_to_rank_zero(self.masks[name].flatten())
            state[name] = {
                "mask": pack(mask) if len(mask) else self.packed.bits[name][:0],
                "values": gather_to_rank_zero(self.values(name)),
            }
            if base:
                state[name]["base"] = gather_to_rank_zero(self.base_values(name))
            for kind, kept in self.beside(name).items():
                every = gather_to_rank_zero(kept.flatten())
                state[name][kind] = every.view(shape_of(weight)) if len(every) else every
            for kind, kept in self.shared(name).items():
                state[name][kind] = sent.setdefault(id(kept), kept.cpu()) if rank() == 0 else kept[:0].cpu()
        return state


class ShardedEntries(ShardedProtection, CompactEntries):
    """`CompactEntries` of the rows (FSDP2) or flat positions (FSDP1) that this process holds.

    All processes must make it, and call `verify`, `frozen_digests` and `state_dict`, together.

    Args:
        weights: run-time name -> parameter that is sharded over the processes.
        masks: name -> bool of what is here, in its shape.
    """

    def _counted(self, counts: dict[str, int]) -> dict[str, int]:
        return dict(zip(counts, all_reduce_counts(counts.values()), strict=True))


class ShardedDenseEntries(ShardedProtection, DenseEntries):
    """`DenseEntries` of what this process holds; all processes must make it together.

    Args:
        weights: run-time name -> parameter that is sharded over the processes.
        masks: name -> bool of what is here, in its shape.
        base: name -> pretrained values of what is here, in its shape.
    """

    def __init__(
        self, weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor], base: Mapping[str, Tensor]
    ) -> None:
        super().__init__(weights, masks, base)
        self._total = all_reduce_counts([super().num_trainable])[0]

    @property
    def num_trainable(self) -> int:
        """Trainable entries of all matrices, on all processes."""
        return self._total

    def base_digests(self) -> dict[str, str]:
        """Name -> content hash that the frozen entries of the base have."""
        return digests_in_turns(
            (name, self.weights[name], base.masked_fill(self.masks[name].to(base.device), 0))
            for name, base in self.base.items()
        )


class ShardedSoftEntries(SoftEntries, ShardedEntries):
    """`SoftEntries` of what this process holds; see `ShardedEntries` for what all must call.

    Args:
        weights: run-time name -> parameter that is sharded over the processes.
        rule: applied to what is here of each matrix, by all processes together.
        priors: name -> float32 of what is here, in its shape; may lack names.
        directions: name -> directions of the inputs, the same on all processes.
    """

    reducer: ClassVar[Reducer] = DistributedReducer()


def frozen_of(trained: Protection, masks: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> DenseEntries:
    """What stays frozen of matrices that were trained, by masks that are known only now.

    Args:
        trained: closed; whole or sharded over processes.
        masks: name -> (O, I) bool, of what is here.
        base: name -> (O, I) pretrained values of what is here, on the host.
    """
    return (ShardedDenseEntries if trained.is_sharded else DenseEntries)(trained.weights, masks, base)


def entries_as_shares(entries: Protection, base: bool = True) -> dict[str, dict[str, Share]]:
    """`Protection.state_dict` of entries that are sharded over processes, as shards; all must call it.

    Masks are (O, ceil(I / 8)) bytes, a row of bits after the other, so that rows of a matrix are rows of its mask.
    """
    extent = dict(
        zip(entries.weights, extents([entries.values(name).numel() for name in entries.weights]), strict=True)
    )
    state = {}
    for name, weight in entries.weights.items():
        rows, (first, total), columns = local_rows(weight), extent[name], weight.shape[1]
        bits = to_rows(entries.packed.bits[name], (rows.stop - rows.start, columns))
        state[name] = {
            "mask": Share(bits, rows.start, (len(weight), bits.shape[1]), columns),
            "values": Share(entries.values(name).detach(), first, (total,)),
        }
        if base:
            state[name]["base"] = Share(entries.base_values(name), first, (total,))
        for kind, kept in entries.beside(name).items():
            state[name][kind] = Share(kept, rows.start, tuple(weight.shape))
        for kind, kept in entries.shared(name).items():
            state[name][kind] = Share(kept, 0, kept.shape) if rank() == 0 else Share(kept[:0], len(kept), kept.shape)
    return state


def stored_state(entry: Mapping[str, Stored], weight: Tensor) -> dict[str, Tensor]:
    """Read what of a matrix' state concerns the entries that this process holds; all must call it.

    Args:
        entry: `mask` and the (k,) tensors of the whole matrix.
        weight: the matrix, sharded over the processes.

    Raises:
        DowserError: if it is of another matrix.
    """
    mask, shape = entry["mask"], shape_of(weight)
    if (len(mask), mask.columns) != tuple(shape):
        raise DowserError(
            f"the checkpoint has a mask of shape {(len(mask), mask.columns)} for a matrix of {tuple(shape)}; resume "
            "with the model it was made from"
        )
    rows, part = covering(weight)
    here = unpack(from_rows(mask[rows], shape[1]), (rows.stop - rows.start, shape[1]))
    here = here if part is None else here.view(-1)[part]
    count = int(torch.count_nonzero(here))
    first, total = DistributedReducer().exclusive_sum(count)
    if total != len(entry["values"]):
        raise DowserError(
            f"the checkpoint is damaged: got {len(entry['values'])} values for a mask of {total} entries, expected as "
            "many; give another checkpoint"
        )
    return (
        {"mask": pack(here)}
        | {
            kind: each[first : first + count] if each.dim() == 1 else each.part_of(weight)
            for kind, each in entry.items()
            if kind not in ("mask", *SHARED)
        }
        | {kind: entry[kind].whole() for kind in SHARED if kind in entry}
    )


def local_state(entry: Mapping[str, Any], weight: Tensor) -> dict[str, Tensor]:
    """What of a matrix' state in a checkpoint concerns the entries that this process holds.

    Args:
        entry: packed `mask` and the (k,) tensors of the whole matrix.
        weight: the matrix, sharded over the processes.
    """
    if isinstance(entry["mask"], Stored):
        return stored_state(entry, weight)
    mask = unpack(entry["mask"], shape_of(weight))
    here = shard_like(mask, weight)
    first = int(torch.count_nonzero(mask.view(-1)[: flat_range(weight).start]))
    part = slice(first, first + int(torch.count_nonzero(here)))
    return (
        {"mask": pack(here)}
        | {
            kind: (
                values[part] if values.dim() == 1 else shard_like(values, weight)
            ).clone()  # a number per entry of the matrix
            for kind, values in entry.items()
            if kind not in ("mask", *SHARED)
        }
        | {kind: entry[kind] for kind in SHARED if kind in entry}
    )
