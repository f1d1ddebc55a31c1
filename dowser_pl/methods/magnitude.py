"""Magnitude: train the smallest weights, as in magnitude pruning (Han et al. 2015, arXiv 1506.02626)."""

from typing import ClassVar

from torch import Tensor

from dowser_pl.maths.masks import lowest, num_trainable
from dowser_pl.methods.base import Layer, Method, Reference

__all__ = ["Magnitude"]


class Magnitude(Method):
    """Train the ``update_ratio`` entries of smallest |W| in each matrix; nothing is measured.

    Args:
        update_ratio: trainable share of each matrix, in [0, 1].
    """

    reference: ClassVar[Reference] = Reference(
        title="Learning both Weights and Connections for Efficient Neural Networks",
        authors="Han, Pool, Tran, Dally",
        year=2015,
        arxiv="1506.02626",
    )

    def __init__(self, update_ratio: float = 0.1) -> None:
        num_trainable(update_ratio, 0)
        self.update_ratio = update_ratio

    def mask(self, layer: Layer) -> Tensor:
        """The entries of smallest magnitude."""
        scores = layer.weight.detach().abs()
        return lowest(scores, num_trainable(self.update_ratio, scores.numel()))
