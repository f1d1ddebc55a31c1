"""OSF: train, but not the leading singular directions of each matrix.

Nikhil Shivakumar Nayak, Krishnateja Killamsetty, Ligong Han, Abhishek Bhandwaldar, Prateek Chanda, Kai Xu, Hao Wang,
Aldo Pareja, Oleg Silkin, Mustafa Eyceoz, Akash Srivastava: "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs
for Continual Learning" (OSFT), ICLR 2026, arXiv 2504.07097. Of W0 = U S V^T the k leading triples are kept, and

    W = W0 + P_L D P_R,    P_L = I - U_k U_k^T,    P_R = I - V_k V_k^T,

where D is what the optimizer trains, from zero, with the gradients of W: every step of any optimizer is multiplied by
both projections, so that the k triples of W0 are triples of W whatever the step (`dowser_pl/functional/singular.py`),
and weight decay pulls to the base. k is the same share of the smaller side of every matrix.

Differences: the paper, and OSF of peft after it, train the other factors, U_l, S_l and V_l, and project the gradients
of U_l and V_l. What W can become is the same; but Adam's step of a projected gradient lies off the projection, and so
moves the triples, decay pulls the factors to zero, and steps are larger where singular values are. The paper gives
layers shares of their own, by how alike their inputs and outputs are on data; peft has one for all, as here, one half.
"""

from typing import ClassVar

from dowser_pl.errors import DowserError
from dowser_pl.methods.base import EachStep, Reference

__all__ = ["OSF"]


class OSF(EachStep):
    """Leave the leading singular triples of each matrix as they are; the base is kept beside each matrix.

    Args:
        preserve: share of its triples that stays, in (0, 1); of every matrix at least one stays and one may move.
    """

    reference: ClassVar[Reference] = Reference(
        title="Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning",
        authors="Nayak, Killamsetty, Han, Bhandwaldar, Chanda, Xu, Wang, Pareja, Silkin, Eyceoz, Srivastava",
        year=2025,
        arxiv="2504.07097",
    )

    needs_directions: ClassVar[bool] = True

    def __init__(self, preserve: float = 0.5) -> None:
        if not 0 < preserve < 1:
            raise DowserError(f"preserve is the share of singular triples that stay, in (0, 1); got {preserve}")
        self.preserve = preserve

    def rank_of(self, outputs: int, inputs: int) -> int:
        """How many triples of a matrix stay.

        Args:
            outputs: O.
            inputs: I; both are at least 2.
        """
        least = min(outputs, inputs)
        return min(max(round(self.preserve * least), 1), least - 1)
