"""How much of each weight's move away from the base is kept, of one tuned model or of several.

Entries that nothing moves keep the bits of the base; entries that take one whole move have the bits of that tuned
model. All else is computed in float32 at least and rounded once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["masked_move", "mean_of_moves", "sum_of_moves"]


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


def sum_of_moves(base: Tensor, tuned: Sequence[Tensor], masks: Sequence[Tensor], factor: float = 1.0) -> Tensor:
    """``base + factor * sum_t mask_t * (tuned_t - base)``.

    Args:
        base: (O, I) pretrained weights.
        tuned: (O, I) weights of each tuned model, dtype of the base.
        masks: (O, I) bool of each, True = keep the move.
        factor: on the sum.

    Returns:
        (O, I) in the dtype of the base.
    """
    return _moved(base, tuned, masks, factor, mean=False)


def mean_of_moves(base: Tensor, tuned: Sequence[Tensor], masks: Sequence[Tensor], factor: float = 1.0) -> Tensor:
    """``base + factor * mean_t (tuned_t - base)``, the mean over the models whose mask holds the entry.

    Args and returns are those of :func:`sum_of_moves`.
    """
    return _moved(base, tuned, masks, factor, mean=True)


def _moved(base: Tensor, tuned: Sequence[Tensor], masks: Sequence[Tensor], factor: float, mean: bool) -> Tensor:
    if factor == 0:
        return base.clone()
    start = base.to(torch.promote_types(base.dtype, torch.float32))
    total, count = torch.zeros_like(start), torch.zeros(base.shape, dtype=torch.int32, device=base.device)
    for each, mask in zip(tuned, masks, strict=True):
        total += torch.where(mask, each - start, 0)
        count += mask
    if mean:
        total /= count.clamp(min=1)
    merged = torch.where(count > 0, (start + factor * total).to(base.dtype), base)
    if factor == 1:
        for each, mask in zip(tuned, masks, strict=True):
            merged = torch.where(mask & (count == 1), each, merged)
    return merged
