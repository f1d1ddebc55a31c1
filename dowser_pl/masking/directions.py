"""How directions of inputs or outputs are kept beside matrices and in checkpoints: once for all that share an input."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dowser_pl.functional.null_space import Directions
from dowser_pl.masking.base import State

__all__ = ["as_shared", "bytes_of", "stored_directions"]


def as_shared(found: Directions | None) -> dict[str, Tensor]:
    """Kinds of a matrix' state: `vectors` (I, r), `left` or also `outputs` (O, r), `shares` (r,); none without any."""
    if found is None:
        return {}
    outputs = {} if found.outputs is None else {"outputs": found.outputs}
    return {"left" if found.left else "vectors": found.vectors, "shares": found.shares} | outputs


def bytes_of(directions: Mapping[str, Directions]) -> int:
    """Memory that directions take, those that are shared once."""
    kept = [as_shared(each) for each in dict.fromkeys(directions.values())]
    return sum(tensor.nbytes for each in kept for tensor in each.values())


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
        vectors, shares = (each[kind].to(device) for kind in ("left" if left else "vectors", "shares"))
        loaded = Directions(vectors, shares, left, each["outputs"].to(device) if "outputs" in each else None)
        known = (other for other in dict.fromkeys(found.values()) if _equal(other, loaded))
        found[name] = next(known, loaded)
    return found


def _equal(one: Directions, other: Directions) -> bool:
    kinds, others = as_shared(one), as_shared(other)
    return kinds.keys() == others.keys() and all(torch.equal(kinds[kind], others[kind]) for kind in kinds)
