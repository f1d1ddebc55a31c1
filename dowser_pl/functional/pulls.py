"""Pulls towards the base: as a penalty on the distance, and as a shrinking of it.

The penalty is the starting-point term of Li, Grandvalet, Davoine: "Explicit Inductive Bias for Transfer Learning with
Convolutional Networks", ICML 2018, arXiv 1802.01483. Legend: O outputs, I inputs of a matrix.
"""

import torch
from torch import Tensor

__all__ = ["penalty_gradient", "shrunk_move"]


def penalty_gradient(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """Gradient of ``alpha / 2 * ||W - W0||^2`` by W, that is ``alpha * (W - W0)``; (O, I)."""
    return (tuned - base).mul_(alpha)


def shrunk_move(base: Tensor, tuned: Tensor, keep: float) -> Tensor:
    """``W0 + keep * (W - W0)``; (O, I), exactly ``tuned`` at 1 and ``base`` at 0."""
    return torch.lerp(base, tuned, keep)
