"""L2-SP: weight decay towards the pretrained weights instead of zero.

Xuhong Li, Yves Grandvalet, Franck Davoine: "Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
ICML 2018, arXiv 1802.01483: the loss gains `alpha / 2 * ||W - W0||^2`. The paper's second term, a plain decay of
layers that the base does not have, has nothing to act on here. The paper trains with SGD; AdamW divides the penalty's
gradient by the same root as the loss' own, so that `alpha` means something else under it. See `anchor.py` for the
decoupled form.
"""

import math
from typing import ClassVar

from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.merges import penalty_gradient
from dowser_pl.methods.base import EachStep, Reference

__all__ = ["L2SP"]


class L2SP(EachStep):
    """Add `alpha * (W - W0)` to the gradient, before it is clipped; the base is kept beside each matrix.

    Args:
        alpha: strength of the penalty, >= 0.
    """

    reference: ClassVar[Reference] = Reference(
        title="Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
        authors="Li, Grandvalet, Davoine",
        year=2018,
        arxiv="1802.01483",
    )

    def __init__(self, alpha: float = 0.01) -> None:
        if not 0.0 <= alpha < math.inf:
            raise DowserError(f"alpha is the strength of a penalty, a number of at least 0; got {alpha}")
        self.alpha = alpha

    def penalty(self, base: Tensor, tuned: Tensor) -> Tensor:
        """`alpha * (W - W0)`."""
        return penalty_gradient(base, tuned, self.alpha)
