"""What Adam remembers of a parameter, read from the optimizer: the mean of its gradients, and the decay of a step."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dowser_pl.errors import DowserError

__all__ = ["check_moments", "decay_of", "first_moment"]

_ADAMS = ("Adam", "AdamW")  # torch's and, with 32 bits, those of bitsandbytes
_8_BITS = "8bit"


def check_moments(optimizer: Optimizer) -> None:
    """Refuse optimizers whose steps are not Adam's.

    Raises:
        DowserError: naming those that are.
    """
    if _adam(optimizer) is None:
        raise DowserError(
            f"got the optimizer {type(optimizer).__name__} with a method that chooses entries by Adam's first moment, "
            "expected Adam or AdamW of torch or bitsandbytes (AdamW8bit, PagedAdamW8bit). Set --model.optimizer AdamW"
        )


def first_moment(optimizer: Optimizer, parameter: nn.Parameter) -> Tensor | None:
    """`m` as the last step left it, float32 in the shape of the parameter; None if it never made a step with it.

    Eight bits are unpacked, which gives few different values to each block of 256 entries.

    Args:
        optimizer: Adam or AdamW, of torch or bitsandbytes.
        parameter: that it may train.
    """
    state: dict[str, Tensor] = optimizer.state.get(parameter, {})
    if "exp_avg" in state:
        return state["exp_avg"].float()
    if "state1" not in state:
        return None
    if state["state1"].dtype != torch.uint8:
        return state["state1"].float()
    from bitsandbytes.functional import dequantize_blockwise  # noqa: PLC0415 - slow, rarely needed

    found: Tensor = dequantize_blockwise(state["state1"], absmax=state["absmax1"], code=state["qmap1"], blocksize=256)
    return found.float().view_as(parameter)


def decay_of(optimizer: Optimizer, parameter: nn.Parameter) -> float:
    """What a step multiplies each entry by beside its move: `1 - lr * weight_decay` for AdamW, 1 for Adam.

    Args:
        optimizer: Adam or AdamW, of torch or bitsandbytes.
        parameter: that it trains.
    """
    group: dict[str, Any] = next(
        group for group in optimizer.param_groups if any(each is parameter for each in group["params"])
    )
    decoupled = "AdamW" in (_adam(optimizer) or "")
    return 1 - float(group["lr"]) * float(group["weight_decay"]) if decoupled else 1.0


def _adam(optimizer: Optimizer) -> str | None:
    """The first class of its lineage that is known to step as Adam does."""
    names = (each.__name__ for each in type(optimizer).__mro__)
    return next((name for name in names if name.removeprefix("Paged").removesuffix(_8_BITS) in _ADAMS), None)
