"""Masks that contain one another, as one number per entry of the largest: by how many of the smaller it is left out."""

import torch
from torch import Tensor

__all__ = ["chosen", "left_out", "up_to"]


def left_out(outer: Tensor, inner: Tensor) -> Tensor:
    """Which entries of a mask a smaller one inside it does not hold.

    Args:
        outer: (O, I) bool with k True.
        inner: (O, I) bool.

    Returns:
        (k,) bool on the CPU, in the order of the entries of ``outer``.

    Raises:
        ValueError: if ``inner`` holds an entry that ``outer`` does not.
    """
    inner = inner.to(outer.device)
    stray = int(torch.count_nonzero(inner & ~outer))
    if stray:
        raise ValueError(
            f"{stray} entries of the smaller mask are not in the larger one, expected masks of one score at rising "
            "update ratios, of which each contains those before it"
        )
    return (~inner[outer]).cpu()


def up_to(outer: Tensor, levels: Tensor, level: int) -> Tensor:
    """The mask of the entries of ``outer`` whose level is at most ``level``; none for -1.

    Args:
        outer: (O, I) bool with k True.
        levels: (k,) integers.
        level: the highest to be kept.
    """
    return outer.masked_scatter(outer, chosen(levels, level).to(outer.device))


def chosen(levels: Tensor, level: int) -> Tensor:
    """(k,) bool: which of ``levels`` (k,) are at most ``level``."""
    return levels.int() <= level  # bytes have no -1: the comparison would turn it into 255
