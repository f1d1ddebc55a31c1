"""The one equation of the field: how much of each weight's move away from the base is kept."""

import torch
from torch import Tensor

__all__ = ["masked_move"]


def masked_move(base: Tensor, tuned: Tensor, mask: Tensor) -> Tensor:
    """``base + mask * (tuned - base)``.

    Args:
        base: (O, I) pretrained weights.
        tuned: (O, I) weights after training, same dtype.
        mask: (O, I) bool (True = keep the move) or float in [0, 1].

    Returns:
        (O, I). With a bool mask every entry is bit-identical to one of the two inputs.
    """
    if mask.dtype == torch.bool:
        return torch.where(mask, tuned, base)
    return torch.lerp(base, tuned, mask.to(base.dtype))
