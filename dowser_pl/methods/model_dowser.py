"""Model-Dowser: freeze what the pretrained model is sensitive to, train the least important share.

Hyeontaek Hwang, Nguyen Dinh Son, Daeyoung Kim: "Model-Dowser: Data-Free Importance Probing to Mitigate
Catastrophic Forgetting in Multimodal Large Language Models", ICML 2026, arXiv 2602.04509.

Two estimators of the same score are in use, and they rank differently:

- ``paper``: per prompt ``||J_i||`` is the root of the mean squared probe gradient (Hutchinson), over probes
  and positions; the products are averaged over prompts.
- ``authors``: what the released code computes: means of |g| and |h| over a batch of prompts, their positions
  and, at the end, the probes; products of those means. ``group_size`` is that batch.

Differences from the released code, all deliberate: exactly k entries per matrix (ties do not widen the mask);
a matrix without a score is an error instead of fully trainable; norms and ``lm_head`` stay frozen; padding
does not count as a position; the probed text keeps its random prefix, as the paper has it.
"""

from typing import ClassVar, Literal

from torch import Tensor

from dowser_pl.maths.masks import lowest, num_trainable
from dowser_pl.maths.scores import group_means, hutchinson_norm, importance
from dowser_pl.methods.base import Layer, Method, Need, Reference

__all__ = ["ModelDowser"]


class ModelDowser(Method):
    """Train the ``update_ratio`` least important entries of each matrix, scored without data.

    Args:
        update_ratio: trainable share of each matrix, in [0, 1].
        estimator: ``authors`` (released code, the default: least variance between probe seeds) or ``paper``.
        group_size: prompts averaged before the product, for ``authors`` only (4 in the released recipe).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"activation", "sensitivity"})
    reference: ClassVar[Reference] = Reference(
        title="Model-Dowser: Data-Free Importance Probing to Mitigate Catastrophic Forgetting in MLLMs",
        authors="Hwang, Nguyen, Kim",
        year=2026,
        arxiv="2602.04509",
    )

    def __init__(
        self,
        update_ratio: float = 0.1,
        estimator: Literal["authors", "paper"] = "authors",
        group_size: int = 4,
    ) -> None:
        num_trainable(update_ratio, 0)
        if estimator not in ("authors", "paper"):
            raise ValueError(f"estimator must be 'authors' or 'paper', got {estimator!r}")
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1 prompt, got {group_size}")
        self.update_ratio = update_ratio
        self.estimator = estimator
        self.group_size = group_size

    def mask(self, layer: Layer) -> Tensor:
        """The lowest-scoring entries of the matrix."""
        scores = self.score(layer)
        return lowest(scores, num_trainable(self.update_ratio, scores.numel()))

    def score(self, layer: Layer) -> Tensor:
        """(O, I) float32 importance, low = trainable."""
        activation = layer.measured("activation")
        if self.estimator == "paper":
            sensitivity = hutchinson_norm(layer.measured("square_gradient"))
        else:
            sensitivity = group_means(layer.measured("abs_gradient"), self.group_size)
            activation = group_means(activation, self.group_size)
        device = layer.weight.device
        return importance(layer.weight, sensitivity.to(device), activation.to(device))
