"""How much of each weight's move away from the base is kept, of one tuned model or of several, and pulls towards it.

Entries that nothing moves keep the bits of the base; entries that take one whole move have the bits of that tuned
model. All else is computed in float32 at least and rounded once.

Models that disagree about a weight elect its direction, and only those that go there have a say: Yadav, Tam, Choshen,
Raffel, Bansal: "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023, arXiv 2306.01708, section 4,
steps 2 and 3. The penalty of a pull is the starting-point term of Li, Grandvalet, Davoine: "Explicit Inductive Bias for
Transfer Learning with Convolutional Networks", ICML 2018, arXiv 1802.01483. The forgetting-aware score is that of
Huang, Cheng, Wang: "Mitigating Catastrophic Forgetting in Large Language Models with Forgetting-aware Pruning", 2025,
arXiv 2509.08255.

Legend: O outputs, I inputs of a matrix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "agreeing",
    "forgetting_aware",
    "masked_move",
    "mean_of_moves",
    "penalty_gradient",
    "shrunk_move",
    "sum_of_moves",
]


def masked_move(base: Tensor, tuned: Tensor, mask: Tensor) -> Tensor:
    """`base + mask * (tuned - base)`.

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
    """`base + factor * sum_t mask_t * (tuned_t - base)`.

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
    """`base + factor * mean_t (tuned_t - base)`, the mean over the models whose mask holds the entry.

    Args and returns are those of `sum_of_moves`.
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


def agreeing(
    base: Tensor, tuned: Sequence[Tensor], masks: Sequence[Tensor], undecided_to_majority: bool = False
) -> list[Tensor]:
    """Which moves go in the elected direction, the sign of the sum of all moves.

    Args:
        base: (O, I) pretrained weights.
        tuned: (O, I) weights of each tuned model, dtype of the base.
        masks: (O, I) bool of each; moves outside are taken for zero.
        undecided_to_majority: where the moves cancel, elect the direction that most entries of the matrix have;
            else nothing agrees there.

    Returns:
        (O, I) bool for each model; an entry that did not move agrees with nothing.
    """
    start = base.to(torch.promote_types(base.dtype, torch.float32))
    directions, total = [], torch.zeros_like(start)
    for each, mask in zip(tuned, masks, strict=True):
        move = torch.where(mask, each - start, 0)
        total += move
        directions.append(move.sign().to(torch.int8))
    elected = total.sign().to(torch.int8)
    if undecided_to_majority:
        majority = elected.sum(dtype=torch.int64).sign().to(torch.int8)
        elected = torch.where(elected == 0, majority, elected)
    return [(direction == elected) & (direction != 0) for direction in directions]


def forgetting_aware(base: Tensor, moved: Tensor) -> Tensor:
    """`S = |D| - mean(|W0|) * |D| / |W0|`, high = worth keeping; minus infinity where W0 is 0, also for D = 0.

    Args:
        base: (O, I) pretrained weights W0.
        moved: (O, I) float32, |D|, how far each entry got from them.

    Returns:
        (O, I) float32 of either sign; a matrix of zeros gives minus infinity everywhere.
    """
    size = base.detach().float().abs()
    return torch.where(size > 0, moved * (1 - size.mean() / size), -torch.inf)


def penalty_gradient(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """Gradient of `alpha / 2 * ||W - W0||^2` by W, that is `alpha * (W - W0)`; (O, I)."""
    return (tuned - base).mul_(alpha)


def shrunk_move(base: Tensor, tuned: Tensor, keep: float) -> Tensor:
    """`W0 + keep * (W - W0)`; (O, I), exactly `tuned` at 1 and `base` at 0."""
    return torch.lerp(base, tuned, keep)
