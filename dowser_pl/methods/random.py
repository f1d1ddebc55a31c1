"""Random: the control that every importance score has to beat."""

from typing import ClassVar

import torch
from torch import Tensor

from dowser_pl.maths.masks import lowest, num_trainable
from dowser_pl.maths.streams import stream
from dowser_pl.methods.base import Layer, Method, Reference

__all__ = ["Random"]


class Random(Method):
    """Train a uniformly random ``update_ratio`` of each matrix.

    Args:
        update_ratio: trainable share of each matrix, in [0, 1].
        seed: picks the mask; the same seed and matrix name give the same mask.
    """

    reference: ClassVar[Reference] = Reference(
        title="control of arXiv 2602.04509", authors="Hwang, Nguyen, Kim", year=2026, arxiv="2602.04509"
    )

    def __init__(self, update_ratio: float = 0.1, seed: int = 0) -> None:
        num_trainable(update_ratio, 0)
        self.update_ratio = update_ratio
        self.seed = seed

    def mask(self, layer: Layer) -> Tensor:
        """Exactly k entries drawn without replacement, drawn on the CPU so that devices agree."""
        scores = torch.rand(layer.weight.shape, generator=stream(self.seed, "mask", layer.name))
        return lowest(scores, num_trainable(self.update_ratio, scores.numel())).to(layer.weight.device)
