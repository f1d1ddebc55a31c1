"""Which texts a model wrote say nothing: those that end at once, and those that repeat themselves."""

import torch
from torch import Tensor

__all__ = ["is_degenerate"]

_LEAST = 8  # written tokens from which on a repetition is told from a short answer


def is_degenerate(written: Tensor, least_new: float = 0.5) -> bool:
    """Whether a text is empty or repeats itself.

    A text repeats itself if its distinct pairs of neighbours are fewer than `least_new` of all its pairs.

    Args:
        written: (T,) int64, what the model wrote, without the token that ended it.
        least_new: smallest share of distinct pairs, in [0, 1].
    """
    if not len(written):
        return True
    if len(written) < _LEAST:
        return False
    pairs = torch.stack([written[:-1], written[1:]], dim=1)
    return len(pairs.unique(dim=0)) < least_new * len(pairs)
