"""States of an optimizer whose parameters are parts of what one process would train, to and from those of one process.

What processes hold of a parameter, rows or entries, follows each other in the order of the processes.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dowser_pl.distributed.checkpoint import Share, Stored, extents
from dowser_pl.distributed.collectives import gather_to_rank_zero
from dowser_pl.distributed.tensors import flat_shard_of, shape_of, shard_like
from dowser_pl.errors import DowserError

__all__ = ["cut_states", "gathered_states", "shared_states"]


def gathered_states(optimizer: Optimizer, put: Callable[[int, Tensor], Any] | None = None) -> dict[str, Any]:
    """`optimizer.state_dict()` as one process would have it, in the host memory of the first process; all must call.

    Args:
        optimizer: of parameters that are parts.
        put: what to do with the part of a state that is here, and the number of its parameter; None = gather it.

    Raises:
        DowserError: if a state is not one number per entry, nor one per parameter.
    """
    state = optimizer.state_dict()
    parameters = _parameters(optimizer)

    def gather(number: int, part: Tensor) -> Tensor:
        every, parameter = gather_to_rank_zero(part.flatten()), parameters[number]
        flat = flat_shard_of(parameter) is not None and len(every)
        return every.view(shape_of(parameter) if flat else (-1, *part.shape[1:]))

    return state | {
        "state": {
            number: {kind: _put(number, kind, value, parameters[number], put or gather) for kind, value in held.items()}
            for number, held in state["state"].items()
        }
    }


def cut_states(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Cut out of the states of one process those of this process' parameters; all must call it."""
    parameters = _parameters(optimizer)
    extent = extents([len(each) for each in parameters])
    return dict(state) | {
        "state": {
            number: {kind: _cut(value, parameters[number], extent[number][0]) for kind, value in held.items()}
            for number, held in state["state"].items()
        }
    }


def _put(number: int, kind: str, value: Any, parameter: nn.Parameter, put: Callable[[int, Tensor], Any]) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if value.shape != parameter.shape:
        raise DowserError(
            f"the optimizer keeps {kind} of shape {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}, "
            "which cannot be put together from several processes; use one that keeps a number per entry, as "
            "torch.optim.AdamW does"
        )
    return put(number, value)


def _cut(value: Any, parameter: nn.Parameter, first: int) -> Any:
    if not isinstance(value, Tensor | Stored) or value.dim() == 0:
        return value
    if flat_shard_of(parameter) is not None:
        return value.part_of(parameter) if isinstance(value, Stored) else shard_like(value, parameter).clone()
    return value[first : first + len(parameter)].clone()


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """In the order of their numbers in a state dict."""
    return [each for group in optimizer.param_groups for each in group["params"]]


def shared_states(optimizer: Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` of parameters that are parts, as parts; all must call it.

    Raises:
        DowserError: if a state is not one number per entry, nor one per parameter.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    extent = extents([len(each) for each in parameters])

    def share(number: int, part: Tensor) -> Share:
        first, total = extent[number]
        return Share(part, first, (total, *part.shape[1:]))

    return gathered_states(optimizer, share)
