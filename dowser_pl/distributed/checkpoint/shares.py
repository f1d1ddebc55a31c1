"""What a process holds of a tensor that is spread over processes by rows, and where in the whole it belongs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dowser_pl.distributed import collectives
from dowser_pl.distributed.tensors import added, is_spread, local, local_rows

__all__ = ["Share", "extents", "share_of", "shares_of"]


@dataclass(frozen=True, eq=False)
class Share:
    """Rows of a tensor that follow each other; entries, where it has one dimension.

    Attributes:
        here: (n, ...) what this process holds; all of it where the tensor is not spread.
        first: number of the first row that is here.
        shape: of the whole.
        columns: how many bits a row has, where rows are bits of a mask, padded to bytes; None = the tensor is no mask.
    """

    here: Tensor
    first: int
    shape: tuple[int, ...]
    columns: int | None = None

    @property
    def offsets(self) -> torch.Size:
        """Where in the whole it begins, in each dimension."""
        return torch.Size((self.first, *[0] * (len(self.shape) - 1))[: len(self.shape)])

    @property
    def is_to_be_written(self) -> bool:
        """Whether anything is here; of a tensor without entries all processes have the same."""
        return self.here.numel() > 0 or 0 in self.shape


def share_of(tensor: Tensor) -> Share:
    """What this process holds of a weight or a buffer."""
    first = local_rows(tensor).start if is_spread(tensor) else 0
    return Share(local(tensor.detach()), first, tuple(tensor.shape))


def shares_of(tensors: Mapping[str, Tensor]) -> dict[str, Share]:
    """What this process holds of each tensor; of two names that are one tensor, one share."""
    found = {id(tensor): share_of(tensor) for tensor in tensors.values()}
    return {name: found[id(tensor)] for name, tensor in tensors.items()}


def extents(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Where parts of so many rows begin in their wholes, and how many rows these have; all processes must call it.

    Args:
        lengths: rows of each part that is here; the parts of a whole lie on the processes in order.
    """
    counts = torch.zeros(collectives.world_size(), len(lengths), dtype=torch.int64)
    counts[collectives.rank()] = torch.tensor(lengths, dtype=torch.int64)
    counts = torch.tensor(added(counts.flatten().tolist()), dtype=torch.int64).view_as(counts)
    firsts, totals = counts[: collectives.rank()].sum(dim=0), counts.sum(dim=0)
    return list(zip(firsts.tolist(), totals.tolist(), strict=True))
