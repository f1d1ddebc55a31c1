"""Magnitude: train the smallest weights, as in magnitude pruning (Han et al. 2015, arXiv 1506.02626)."""

from typing import ClassVar

from torch import Tensor

from dowser_pl.methods.base import Layer, Reference, Scope, Scored

__all__ = ["Magnitude"]


class Magnitude(Scored):
    """Train the entries of smallest |W|; nothing is measured.

    Args:
        update_ratio: trainable share, in [0, 1].
        scope: share of each `matrix`, of each decoder `layer` or of the `model`.
    """

    reference: ClassVar[Reference] = Reference(
        title="Learning both Weights and Connections for Efficient Neural Networks",
        authors="Han, Pool, Tran, Dally",
        year=2015,
        arxiv="1506.02626",
    )

    def __init__(self, update_ratio: float = 0.1, scope: Scope = "matrix") -> None:
        super().__init__(update_ratio, scope)

    def score(self, layer: Layer) -> Tensor:
        """The score |W|, (O, I)."""
        return layer.weight.detach().abs().float()
