"""WiSE-FT: a point on the line from the pretrained to the tuned weights.

Mitchell Wortsman, Gabriel Ilharco, Jong Wook Kim, Mike Li, Simon Kornblith, Rebecca Roelofs, Raphael Gontijo-Lopes,
Hannaneh Hajishirzi, Ali Farhadi, Hongseok Namkoong, Ludwig Schmidt: "Robust fine-tuning of zero-shot models", CVPR
2022, arXiv 2109.01903: `base + alpha * (tuned - base)`.

Of several tuned models the mean of the moves is taken, which with `alpha: 1` is their average (Wortsman et al. 2022,
arXiv 2203.05482). The paper interpolates every parameter; in `fit` only the tuned matrices move.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.merges import mean_of_moves
from dowser_pl.methods.base import AfterFit, Layer, Need, Reference

__all__ = ["Wise"]


class Wise(AfterFit):
    """Train everything, then go back part of the way.

    Args:
        alpha: share of the way that is kept, in [0, 1]; 0.5 is what the paper recommends where nothing is known.
    """

    reference: ClassVar[Reference] = Reference(
        title="Robust fine-tuning of zero-shot models", authors="Wortsman et al.", year=2021, arxiv="2109.01903"
    )

    update_ratio: float

    def __init__(self, alpha: float = 0.5) -> None:
        if not 0.0 <= alpha <= 1.0:
            raise DowserError(f"alpha is the share of the way to the tuned weights, in [0, 1], got {alpha}")
        self.alpha = alpha
        self.update_ratio = 1.0

    @property
    def needs(self) -> frozenset[Need]:
        """The method needs the tuned weights."""
        return frozenset({"tuned"})

    def mask(self, layer: Layer) -> Tensor:
        """A mask that is True everywhere: every entry moves."""
        return torch.ones_like(layer.weight, dtype=torch.bool)

    def merge(self, layer: Layer, mask: Tensor) -> Tensor:
        """(O, I): the point at `alpha`; an entry outside the mask stays."""
        return self.merge_all([layer], [mask])

    def merge_all(self, layers: Sequence[Layer], masks: Sequence[Tensor]) -> Tensor:
        """(O, I): the point at `alpha` on the way to the mean of the tuned models."""
        return mean_of_moves(layers[0].weight, [layer.measured("tuned") for layer in layers], masks, self.alpha)
