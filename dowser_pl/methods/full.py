"""Full fine-tuning: everything may move. The baseline that shows what forgetting looks like."""

from typing import ClassVar

import torch
from torch import Tensor

from dowser_pl.methods.base import BeforeFit, Layer, Reference

__all__ = ["Full"]


class Full(BeforeFit):
    """Train every entry of the tuned matrices; nothing is measured and nothing is protected."""

    reference: ClassVar[Reference] = Reference(title="full fine-tuning", authors="", year=0)

    def __init__(self) -> None:
        self.update_ratio = 1.0

    def mask(self, layer: Layer) -> Tensor:
        """A mask that is True everywhere."""
        return torch.ones_like(layer.weight, dtype=torch.bool)
