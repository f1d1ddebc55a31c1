"""What a sharded checkpoint holds of entries: of each process its own, and where in the whole it belongs.

Legend: O outputs, I inputs of a matrix, k trainable entries of it, in order of their flat positions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dowser_pl.distributed.checkpoint import Share, Stored, extents
from dowser_pl.distributed.ranks import Ranks
from dowser_pl.distributed.tensors import covering, local_rows, shape_of
from dowser_pl.functional.masks import from_rows, pack, to_rows, unpack
from dowser_pl.masking.base import Protection

__all__ = ["shared_entries", "stored_state"]


def shared_entries(entries: Protection, base: bool = True) -> dict[str, dict[str, Share]]:
    """:meth:`Protection.state_dict` of entries that are spread over processes, spread; all must call it.

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
    return state


def stored_state(entry: Mapping[str, Stored], weight: Tensor) -> dict[str, Tensor]:
    """Read what of a matrix' state concerns the entries that this process holds; all must call it.

    Args:
        entry: ``mask`` and the (k,) tensors of the whole matrix.
        weight: the matrix, spread over the processes.

    Raises:
        ValueError: if it is of another matrix.
    """
    mask, shape = entry["mask"], shape_of(weight)
    if (len(mask), mask.columns) != tuple(shape):
        raise ValueError(
            f"the checkpoint has a mask of shape {(len(mask), mask.columns)} for a matrix of {tuple(shape)}; resume "
            "with the model it was made from"
        )
    rows, part = covering(weight)
    here = unpack(from_rows(mask[rows], shape[1]), (rows.stop - rows.start, shape[1]))
    here = here if part is None else here.view(-1)[part]
    count = int(torch.count_nonzero(here))
    first, total = Ranks().before(count)
    if total != len(entry["values"]):
        raise ValueError(
            f"the checkpoint is damaged: got {len(entry['values'])} values for a mask of {total} entries, expected as "
            "many; give another checkpoint"
        )
    return {"mask": pack(here)} | {
        kind: each[first : first + count] if each.dim() == 1 else each.part_of(weight)
        for kind, each in entry.items()
        if kind != "mask"
    }
