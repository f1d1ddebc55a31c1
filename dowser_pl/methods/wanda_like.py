"""Wanda-like: weight times input activation, the sensitivity of the outputs left out.

After Mingjie Sun, Zhuang Liu, Anna Bair, J. Zico Kolter: "A Simple and Effective Pruning Approach for Large Language
Models", ICLR 2024, arXiv 2306.11695, equation 1: `S_ij = |W_ij| ||X_j||_2`, X the inputs of all calibration tokens.

Like it, not it: the paper takes the L2 norm over the tokens of real text, while here the means of |h| over the
positions of the model's own prompts are at hand, one per prompt; the paper compares within each output row, while here
the entries of `scope` compete; and it removes the lowest, which are trained here.
"""

from typing import ClassVar, Literal, get_args

from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.scores import importance_of_statistic
from dowser_pl.methods.base import Layer, Need, Reference, Scope, Scored

__all__ = ["Norm", "WandaLike"]

Norm = Literal["mean", "rms"]


class WandaLike(Scored):
    """Train the entries of lowest |W| |h|.

    Args:
        update_ratio: trainable share, in [0, 1].
        norm: how |h_j| is averaged over prompts: their `mean`, or the root of the mean square (`rms`), nearer to
            the norm of the paper.
        scope: share of each `matrix`, of each decoder `layer` or of the `model`.
    """

    reference: ClassVar[Reference] = Reference(
        title="A Simple and Effective Pruning Approach for Large Language Models",
        authors="Sun, Liu, Bair, Kolter",
        year=2023,
        arxiv="2306.11695",
    )

    def __init__(self, update_ratio: float = 0.1, norm: Norm = "mean", scope: Scope = "matrix") -> None:
        super().__init__(update_ratio, scope)
        if norm not in get_args(Norm):
            raise DowserError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")
        self.norm = norm

    @property
    def needs(self) -> frozenset[Need]:
        """The method needs the activation alone."""
        return frozenset({"activation"})

    def score(self, layer: Layer) -> Tensor:
        """(O, I) float32 |W| times the averaged activation of the input."""
        activation = layer.measured("activation").double()  # the order of a sum decides no mask
        activation = activation.square().mean(dim=0).sqrt() if self.norm == "rms" else activation.mean(dim=0)
        return importance_of_statistic(layer.weight, activation.float())
