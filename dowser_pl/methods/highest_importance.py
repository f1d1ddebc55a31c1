"""Highest importance: the adversarial control, Model-Dowser's score with the wrong end trained.

If the score of arXiv 2602.04509 means anything, training the entries that it calls most important must forget more
than training the least important or random ones.
"""

from torch import Tensor

from dowser_pl.functional.selection import reversed_order
from dowser_pl.methods.base import Layer
from dowser_pl.methods.model_dowser import ModelDowser

__all__ = ["HighestImportance"]


class HighestImportance(ModelDowser):
    """Train the most important entries; the arguments are those of `ModelDowser`."""

    def score(self, layer: Layer) -> Tensor:
        """(O, I) float32 that orders exactly opposite to the importance; low = trainable."""
        return reversed_order(super().score(layer))
