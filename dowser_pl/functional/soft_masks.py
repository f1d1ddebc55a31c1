"""Soft masks: how much of each entry's move is kept where what it meant before is weighed against what it is for now.

Huang et al.: "Learn from Downstream and Be Yourself in Multimodal Large Language Models Fine-Tuning" (SPIDER), ICML
2025, arXiv 2411.10928, as its released code computes it:

    I = sigmoid(z(|W0|))        G = sigmoid(z(|g_1 + ... + g_t|))        M = G / (I + G) where I < G, else 0
    M <- min(1, M / mean of its non-zero entries)

z standardises by the mean and the deviation over one matrix. Legend: O outputs, I inputs of a matrix; where processes
hold parts of it, (O, I) stands for the shape of a part.
"""

import torch
from torch import Tensor

from dowser_pl.functional.selection import LOCAL, Reducer

__all__ = ["rescaled", "soft_mask", "standardised", "within_matrix"]


def standardised(values: Tensor, reducer: Reducer = LOCAL) -> Tensor:
    """`sigmoid(z(|values|))`, how large an entry is among those of its matrix.

    Args:
        values: (O, I), any float dtype.
        reducer: where each process holds a part of the matrix; all must call it. 40 bytes of each are exchanged.

    Returns:
        (O, I) float32 in (0, 1). A matrix of zeros gives zeros, as in the released code; one whose entries are all of
        another single size gives 1/2, where that code divides by zero.
    """
    size = values.abs().float()
    lowest, highest, mean, deviation = _spread(size, reducer)
    return torch.where(lowest == highest, 0.0, (size - mean) / deviation).sigmoid_().mul_(highest > 0)


def within_matrix(scores: Tensor) -> Tensor:
    """Percentile of each score among those of its matrix: the share below it and half of the share equal to it.

    Args:
        scores: (O, I) float, no NaN.

    Returns:
        (O, I) float32 in (0, 1), mean 1/2; equal scores get equal percentiles.
    """
    flat = scores.detach().float().reshape(-1)
    in_order = flat.sort().values
    below, upto = (torch.searchsorted(in_order, flat, right=right) for right in (False, True))
    return below.add_(upto).float().div_(2 * max(1, flat.numel())).view(scores.shape)


def soft_mask(importance: Tensor, gradient: Tensor) -> Tensor:
    """`G / (I + G)` where `I < G`, else 0.

    Args:
        importance: (O, I) float32 in [0, 1], for what the model could do before.
        gradient: (O, I) float32 in [0, 1], for what it is to learn.

    Returns:
        (O, I) float32 in [0, 1], either 0 or above 1/2.
    """
    return torch.where(importance < gradient, gradient / (importance + gradient), 0.0)


def rescaled(mask: Tensor, reducer: Reducer = LOCAL) -> Tensor:
    """The mask divided by the mean of its non-zero entries, at most 1; a mask of zeros stays as it is.

    Args:
        mask: (O, I) float32, >= 0.
        reducer: as for `standardised`; 16 bytes of each are exchanged.
    """
    chosen, total = torch.count_nonzero(mask), mask.sum()
    if reducer is not LOCAL:
        chosen, total = reducer.all_gather(torch.stack([chosen.double(), mask.sum(dtype=torch.float64)])).sum(dim=0)
    mean = torch.where(chosen > 0, total / chosen, 1.0).float()
    return (mask / mean).clamp_(max=1.0)


def _spread(size: Tensor, reducer: Reducer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lowest, highest, mean and deviation of the entries of one matrix."""
    if reducer is LOCAL:
        return *size.aminmax(), size.mean(), size.std()
    nothing = size.new_tensor([torch.inf, -torch.inf])
    ends = torch.stack(size.aminmax()) if size.numel() else nothing  # a process may hold no entry
    sums = torch.stack([size.new_tensor(size.numel(), dtype=torch.float64), size.sum(dtype=torch.float64)])
    ranks = reducer.all_gather(torch.cat([ends.double(), sums]))
    count, total = ranks[:, 2:].sum(dim=0)
    mean = total / count
    squares = reducer.all_gather((size.double() - mean).square().sum().view(1)).sum()
    deviation = (squares / (count - 1)).sqrt()
    return ranks[:, 0].min().float(), ranks[:, 1].max().float(), mean.float(), deviation.float()
