"""Random: the control that every importance score has to beat."""

from typing import ClassVar

import torch
from torch import Tensor

from dowser_pl.functional.random_streams import stream
from dowser_pl.methods.base import Layer, Reference, Scope, Scored

__all__ = ["Random"]


class Random(Scored):
    """Train entries that are drawn uniformly.

    Args:
        update_ratio: trainable share, in [0, 1].
        scope: share of each `matrix`, of each decoder `layer` or of the `model`.
        seed: picks the mask; the same seed and matrix name give the same mask.
    """

    reference: ClassVar[Reference] = Reference(
        title="control of arXiv 2602.04509", authors="Hwang, Nguyen, Kim", year=2026, arxiv="2602.04509"
    )

    def __init__(self, update_ratio: float = 0.1, scope: Scope = "matrix", seed: int = 0) -> None:
        super().__init__(update_ratio, scope)
        self.seed = seed

    def score(self, layer: Layer) -> Tensor:
        """Uniform numbers, drawn on the CPU so that devices agree."""
        rows, total = layer.rows or (slice(None), len(layer.weight))
        shape = (total, *layer.weight.shape[1:])
        scores = torch.rand(shape, generator=stream(self.seed, "mask", layer.name), dtype=torch.float32)
        return scores[rows].to(layer.weight.device)
