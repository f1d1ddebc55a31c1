"""How directions of inputs or outputs are kept beside matrices and in checkpoints: once for all that share an input."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dowser_pl.functional.null_space import Directions
from dowser_pl.masking.base import State

__all__ = ["as_shared", "bytes_of", "stored_directions"]


def as_shared(found: Directions | None) -> dict[str, Tensor]:
    """Kinds of a matrix' state: `vectors` (I, r), or `left` (O, r) of outputs, and `shares` (r,); none without any."""
    return {} if found is None else {"left" if found.left else "vectors": found.vectors, "shares": found.shares}


def bytes_of(directions: Mapping[str, Directions]) -> int:
    """Memory that directions take, those that are shared once."""
    return sum(each.vectors.nbytes + each.shares.nbytes for each in dict.fromkeys(directions.values()))


def stored_directions(state: State, weights: Mapping[str, nn.Parameter]) -> dict[str, Directions]:
    """Directions of a checkpoint on the device of the weights; equal ones are one object, as they were.

    Args:
        state: name -> what the checkpoint holds of the matrix.
        weights: name -> parameter.
    """
    found: dict[str, Directions] = {}
    for name, each in state.items():
        if "shares" not in each:
            continue
        device, left = weights[name].device, "left" in each
        loaded = Directions(each["left" if left else "vectors"].to(device), each["shares"].to(device), left)
        known = (other for other in dict.fromkeys(found.values()) if _equal(other, loaded))
        found[name] = next(known, loaded)
    return found


def _equal(one: Directions, other: Directions) -> bool:
    return one.left == other.left and torch.equal(one.shares, other.shares) and torch.equal(one.vectors, other.vectors)
