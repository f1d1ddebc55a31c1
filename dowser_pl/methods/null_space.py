"""NullSpace: train, but not in the directions that inputs have on rows which the model wrote itself.

A matrix holds `W = W0 + D P` with `P = (I + A / (eps m))^-1`, where A is the second moment of its inputs on rows that
the model wrote, m its mean eigenvalue and D what the optimizer trains, from zero. P is fixed, so this is every step of
the optimizer times P, whatever the optimizer, and weight decay pulls to the base. Equations:
`dowser_pl/functional/null_space.py`; how it is kept: `dowser_pl/masking/soft.py`.

A combination of this package. Its parents project gradients or steps: Saha, Garg, Roy: "Gradient Projection Memory for
Continual Learning", ICLR 2021, arXiv 2103.09762 (gradients, off the leading directions of stored examples); Wang, Li,
Sun, Xu: "Training Networks in Null Space of Feature Covariance for Continual Learning", CVPR 2021, arXiv 2103.07113
(Adam's steps, on the small eigenvalues of the inputs' second moment); Fang et al.: "AlphaEdit: Null-Space Constrained
Knowledge Editing for Language Models", ICLR 2025, arXiv 2410.02355 (edits of single matrices, on Wikipedia). They take
data of earlier tasks and a threshold; here the model writes the rows, and each direction is taken out by its share.
"""

from dataclasses import dataclass
from typing import ClassVar

from dowser_pl.errors import DowserError
from dowser_pl.functional.null_space import check_directions
from dowser_pl.methods.base import EachStep, Reference

__all__ = ["NullSpace", "NullSpaceSettings"]


@dataclass(frozen=True)
class NullSpaceSettings:
    """Which directions of inputs are taken out of moves, and on how much they are measured.

    Args:
        eps: which eigenvalue of the inputs' second moment is protected by half, in mean eigenvalues; > 0, smaller
            protects more.
        rank: directions that are protected in each matrix; None = all.
        tokens: self-written tokens that inputs are measured on.

    Raises:
        DowserError: if one is out of its range.
    """

    eps: float = 0.1
    rank: int | None = 128
    tokens: int = 8192

    def __post_init__(self) -> None:
        check_directions(self.eps, self.rank)
        if self.tokens < 1:
            raise DowserError(
                f"tokens is how many the model writes to measure inputs on, at least 1; got {self.tokens}"
            )


class NullSpace(EachStep):
    """Keep each matrix' outputs on what the model writes itself; the base is kept beside each matrix.

    Args:
        eps: which eigenvalue of the inputs' second moment is protected by half, in mean eigenvalues; > 0, smaller
            protects more.
        rank: directions that are protected in each matrix; None = all.
        tokens: self-written tokens that inputs are measured on.
    """

    reference: ClassVar[Reference] = Reference(
        title="null space of self-written inputs (after arXiv 2103.09762, 2103.07113 and 2410.02355)",
        authors="",
        year=0,
    )

    needs_directions: ClassVar[bool] = True

    def __init__(self, eps: float = 0.1, rank: int | None = 128, tokens: int = 8192) -> None:
        NullSpaceSettings(eps, rank, tokens)  # refuses what is out of range
        self.eps, self.rank, self.tokens = eps, rank, tokens

    @property
    def rate_hint(self) -> str:
        """What is kept off directions stands larger rates."""
        return "about three times that of full fine-tuning preserves, ten times learns most"
