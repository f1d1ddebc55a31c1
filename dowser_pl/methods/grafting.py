"""Grafting: after training, only the entries that moved furthest keep their tuned values.

Abhishek Panigrahi, Nikunj Saunshi, Haoyu Zhao, Sanjeev Arora: "Task-Specific Skill Localization in Fine-tuned Language
Models", ICML 2023, arXiv 2302.06600: `base + mask * (tuned - base)`.

The paper *learns* the mask, starting from the furthest moves; that takes another training run and is not offered. This
is its starting point, `highest_movement` in the released code. Exactly k entries move (ties there keep none).
"""

from typing import ClassVar

from torch import Tensor

from dowser_pl.functional.selection import reversed_order
from dowser_pl.methods.base import AfterFit, Layer, Need, Ranking, Reference, Scope

__all__ = ["Grafting"]


class Grafting(Ranking, AfterFit):
    """Train everything, then keep the largest moves and put the rest back.

    Args:
        update_ratio: share of entries that keep their tuned values, in [0, 1].
        scope: share of each `matrix`, of each decoder `layer` or of the `model` (as published, the default).
    """

    reference: ClassVar[Reference] = Reference(
        title="Task-Specific Skill Localization in Fine-tuned Language Models",
        authors="Panigrahi, Saunshi, Zhao, Arora",
        year=2023,
        arxiv="2302.06600",
    )

    def __init__(self, update_ratio: float = 0.1, scope: Scope = "model") -> None:
        super().__init__(update_ratio, scope)

    @property
    def needs(self) -> frozenset[Need]:
        """The method needs the tuned weights."""
        return frozenset({"tuned"})

    def score(self, layer: Layer) -> Tensor:
        """(O, I) float32, low = moved far."""
        return reversed_order(layer.moved())
