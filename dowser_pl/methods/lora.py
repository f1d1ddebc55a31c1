"""LoRA: train low-rank adapters beside the matrices, and nothing else.

Edward Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen: "LoRA: Low-Rank
Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685. The adapters are peft's, see `models/lora.py`; with
`model.quantization: 4bit` it is QLoRA (arXiv 2305.14314).

There is no masked LoRA: an entry of B A belongs to a whole row and a whole column, so a product that spares the frozen
entries of an arbitrary mask is zero in nearly all of them, and masks are refused together with adapters.
"""

from typing import ClassVar

import torch
from torch import Tensor

from dowser_pl.methods.base import BeforeFit, Layer, Reference

__all__ = ["Lora"]


class Lora(BeforeFit):
    """Train every entry of the adapters that `model.lora` describes; the matrices they belong to stay as they are."""

    reference: ClassVar[Reference] = Reference(
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        authors="Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen",
        year=2022,
        arxiv="2106.09685",
    )
    update_ratio: None = None

    def mask(self, layer: Layer) -> Tensor:
        """A mask of an adapter, True everywhere."""
        return torch.ones_like(layer.weight, dtype=torch.bool)
