"""Anchor: a pull to the pretrained weights after every step, the same for all entries.

The decoupled form of the penalty of `l2sp.py`, as AdamW's decay is that of an L2 penalty, but towards the base. It has
no paper of its own; it is the control for methods that pull some entries more than others, since much of what these
keep a uniform pull keeps too.
"""

from typing import ClassVar

from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.merges import shrunk_move
from dowser_pl.functional.selection import LOCAL, Reducer
from dowser_pl.methods.base import EachStep, Reference

__all__ = ["Anchor"]


class Anchor(EachStep):
    """`W <- W0 + keep * (W - W0)` after every step; the base is kept beside each matrix.

    Args:
        keep: share of the distance to the base that a step leaves, in [0, 1]; 0.995 halves it in 138 steps. Does not
            depend on the learning rate: with a schedule that falls to 0 the pull has the last word.
    """

    reference: ClassVar[Reference] = Reference(title="decoupled pull to the pretrained weights", authors="", year=0)

    def __init__(self, keep: float = 0.995) -> None:
        if not 0.0 <= keep <= 1.0:
            raise DowserError(f"keep is the share of the distance to the base that is left, in [0, 1]; got {keep}")
        self.keep = keep

    def step(
        self, base: Tensor, tuned: Tensor, gradients: Tensor | None, prior: Tensor | None, reducer: Reducer = LOCAL
    ) -> Tensor:
        """`W0 + keep * (W - W0)`."""
        return shrunk_move(base, tuned, self.keep)
