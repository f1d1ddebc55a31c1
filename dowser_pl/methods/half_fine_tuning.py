"""HFT: half of the matrices train, whole; the other half is frozen.

Tingfeng Hui, Zhenyu Zhang, Shuohuan Wang, Weiran Xu, Yu Sun, Hua Wu: "HFT: Half Fine-Tuning for Large Language Models",
ACL 2025, arXiv 2404.18466: `W <- W0 + M * (W - W0)` with masks M that are drawn before training, all ones for half of
the parameters of each category and all zeros for the others.

A category is here what one module of a decoder layer holds: the matrices of its attention are one, those of its MLP are
another, and so on for every layer. Of n matrices `update_ratio * n` train, drawn at random; where that is no whole
number, a coin decides which of its neighbours it is, so that of three matrices one or two do and over all layers half.

Differences from the paper: masks are drawn once, as for one of its rounds; it draws again for each of several trainings
in a row, which are runs of their own here. Norms, embeddings and the head, of which it has categories too, train or
not by `model.also_train`. Matrices of a category may be of several sizes, so that half of them need not hold half of
its entries.
"""

import math
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from dowser_pl.functional.masks import num_trainable
from dowser_pl.functional.random_streams import stream
from dowser_pl.methods.base import BeforeFit, Layer, Reference

__all__ = ["HalfFineTuning"]


class HalfFineTuning(BeforeFit):
    """Train a random half of the matrices of every attention and MLP.

    Args:
        update_ratio: share of the matrices of each module that train, in [0, 1].
        seed: picks them; the same seed and matrix names pick the same ones.
    """

    reference: ClassVar[Reference] = Reference(
        title="HFT: Half Fine-Tuning for Large Language Models",
        authors="Hui, Zhang, Wang, Xu, Sun, Wu",
        year=2024,
        arxiv="2404.18466",
    )

    update_ratio: float

    def __init__(self, update_ratio: float = 0.5, seed: int = 0) -> None:
        num_trainable(update_ratio, 0)
        self.update_ratio = update_ratio
        self.seed = seed

    @property
    def rate_hint(self) -> str:
        """The rate that was published with it."""
        return "that of full fine-tuning"

    def trained(self, names: Iterable[str]) -> frozenset[str]:
        """Which matrices train.

        Args:
            names: of all matrices that may, in any order.
        """
        modules: dict[str, list[str]] = {}
        for name in sorted(names):
            modules.setdefault(name.rpartition(".")[0], []).append(name)
        chosen: list[str] = []
        for module, inside in modules.items():
            random = stream(self.seed, "half", module)
            coin = torch.rand((), generator=random, dtype=torch.float64).item()
            order = torch.randperm(len(inside), generator=random).tolist()
            chosen += [inside[place] for place in order[: math.floor(self.update_ratio * len(inside) + coin)]]
        return frozenset(chosen)

    def mask(self, layer: Layer) -> Tensor:
        """(O, I) bool, all True or all False: what of the matrix would train, were it alone in its module."""
        return torch.full_like(layer.weight, layer.name in self.trained([layer.name]), dtype=torch.bool)
