"""DARE: drop most of the moves at random and rescale the rest.

Le Yu, Bowen Yu, Haiyang Yu, Fei Huang, Yongbin Li: "Language Models are Super Mario: Absorbing Abilities from
Homologous Models as a Free Lunch", ICML 2024, arXiv 2311.03099, section 3.2. With drop rate p and m ~ Bernoulli(1 - p):

    base + scale * sum_t m_t * (tuned_t - base) / (1 - p)

the sum being over tuned models (task arithmetic), of which there may be one. The drop rate is `1 - update_ratio`.

Difference from the paper and its code: exactly `round(update_ratio * O * I)` moves of a matrix are kept, not each by
a coin of its own, and which ones depends on the seed and the name of the matrix, not on the order of the matrices. The
verb `merge` knows matrices by their names on disk, `fit` by those at run time: where they differ, so do the draws.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dowser_pl.functional.masks import num_trainable
from dowser_pl.functional.merges import sum_of_moves
from dowser_pl.functional.random_streams import stream
from dowser_pl.functional.selection import lowest
from dowser_pl.methods.base import AfterFit, Layer, Need, Reference

__all__ = ["Dare"]


class Dare(AfterFit):
    """Train everything, then keep a random share of the moves, enlarged.

    Args:
        update_ratio: share of moves that is kept, in [0, 1].
        rescale: divide the moves that are kept by the update ratio, as the paper does; its ablation does not.
        scale: on the sum of moves; the paper tunes it where several models are merged.
        seed: picks the moves; the same seed and matrix name keep the same ones.
    """

    reference: ClassVar[Reference] = Reference(
        title="Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
        authors="Yu, Yu, Yu, Huang, Li",
        year=2023,
        arxiv="2311.03099",
    )

    update_ratio: float

    def __init__(self, update_ratio: float = 0.1, rescale: bool = True, scale: float = 1.0, seed: int = 0) -> None:
        num_trainable(update_ratio, 0)
        self.update_ratio = update_ratio
        self.rescale = rescale
        self.scale = scale
        self.seed = seed

    @property
    def needs(self) -> frozenset[Need]:
        """The method needs the tuned weights."""
        return frozenset({"tuned"})

    def mask(self, layer: Layer) -> Tensor:
        """(O, I) bool, drawn on the CPU so that devices agree."""
        random = stream(self.seed, "drop", layer.name)
        drawn = torch.rand(layer.weight.shape, generator=random, dtype=torch.float32).to(layer.weight.device)
        return lowest(drawn, num_trainable(self.update_ratio, drawn.numel()))

    def merge(self, layer: Layer, mask: Tensor) -> Tensor:
        """(O, I): the moves that the mask keeps, rescaled."""
        return self.merge_all([layer], [mask])

    def merge_all(self, layers: Sequence[Layer], masks: Sequence[Tensor]) -> Tensor:
        """(O, I): the sum of what is kept of every model."""
        factor = self.scale / self.update_ratio if self.rescale and self.update_ratio else self.scale
        return sum_of_moves(layers[0].weight, [layer.measured("tuned") for layer in layers], masks, factor)
