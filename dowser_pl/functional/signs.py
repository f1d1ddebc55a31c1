"""Several models that disagree about a weight: elect the direction, and let only those that go there have a say.

Yadav, Tam, Choshen, Raffel, Bansal: "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023,
arXiv 2306.01708, section 4, steps 2 and 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["agreeing"]


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
