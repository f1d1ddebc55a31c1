"""Model-Dowser: freeze what the pretrained model is sensitive to, train the least important share.

Hyeontaek Hwang, Nguyen Dinh Son, Daeyoung Kim: "Model-Dowser: Data-Free Importance Probing to Mitigate
Catastrophic Forgetting in Multimodal Large Language Models", ICML 2026, arXiv 2602.04509.

Four estimators of the same score. Two are published, and they rank differently:

- `paper`: per prompt `||J_i||` is the root of the mean squared probe gradient (Hutchinson), over probes
  and positions; the products are averaged over prompts.
- `authors`: what the released code computes: means of |g| and |h| over a batch of prompts, their positions
  and, at the end, the probes; products of those means. `group_size` is that batch.

Two do not average before they multiply; each costs a float32 matrix per weight while probing:

- `token`: the mean over positions of |g_ti| |h_tj|.
- `weight`: the root of the mean squared derivative of the probe by the entry itself, sum_t g_ti h_tj.

Differences from the released code, all deliberate: exactly k entries per matrix (ties do not widen the mask);
a matrix without a score is an error instead of fully trainable; norms and `lm_head` stay frozen; padding
does not count as a position; the probed text keeps its random prefix, as the paper has it.
"""

from typing import ClassVar, Literal, get_args

from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.scores import hutchinson_norm, importance, importance_of_statistic
from dowser_pl.methods.base import Layer, Need, Reference, Scope, Scored

__all__ = ["Estimator", "ModelDowser"]

Estimator = Literal["authors", "paper", "token", "weight"]
_NEEDS: dict[str, frozenset[Need]] = {
    "authors": frozenset({"activation", "abs_gradient"}),
    "paper": frozenset({"activation", "square_gradient"}),
    "token": frozenset({"token_product"}),
    "weight": frozenset({"weight_square"}),
}


class ModelDowser(Scored):
    """Train the least important entries, scored without data.

    Args:
        update_ratio: trainable share, in [0, 1].
        estimator: `authors` (released code, the default), `paper`, `token` or `weight`; see this file's head.
        group_size: prompts averaged before the product, for `authors` only (4 in the released recipe).
        scope: share of each `matrix`, of each decoder `layer` or of the `model`. Across matrices `authors`
            under-rates the last layer, whose gradient sits on one position; prefer `paper` or `weight` there.
    """

    reference: ClassVar[Reference] = Reference(
        title="Model-Dowser: Data-Free Importance Probing to Mitigate Catastrophic Forgetting in MLLMs",
        authors="Hwang, Nguyen, Kim",
        year=2026,
        arxiv="2602.04509",
    )

    def __init__(
        self,
        update_ratio: float = 0.1,
        estimator: Estimator = "authors",
        group_size: int = 4,
        scope: Scope = "matrix",
    ) -> None:
        super().__init__(update_ratio, scope)
        if estimator not in get_args(Estimator):
            raise DowserError(f"estimator must be one of {', '.join(get_args(Estimator))}, got {estimator!r}")
        if group_size < 1:
            raise DowserError(f"group_size must be at least 1 prompt, got {group_size}")
        self.estimator = estimator
        self.group_size = group_size

    @property
    def needs(self) -> frozenset[Need]:
        """The two factors, or the one matrix, of the estimator."""
        return _NEEDS[self.estimator]

    @property
    def prompts_per_row(self) -> int:
        """The group of `authors`; the other estimators multiply prompt by prompt."""
        return self.group_size if self.estimator == "authors" else 1

    def score(self, layer: Layer) -> Tensor:
        """(O, I) float32 importance, low = trainable."""
        if self.estimator == "token":
            return importance_of_statistic(layer.weight, layer.measured("token_product"))
        if self.estimator == "weight":
            return importance_of_statistic(layer.weight, layer.measured("weight_square").sqrt())
        if self.estimator == "paper":
            sensitivity = hutchinson_norm(layer.measured("square_gradient"))
        else:
            sensitivity = layer.measured("abs_gradient")
        return importance(layer.weight, sensitivity, layer.measured("activation"))
