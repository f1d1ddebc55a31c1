"""TIES-Merging: trim the moves, elect a sign, average what agrees.

Prateek Yadav, Derek Tam, Leshem Choshen, Colin Raffel, Mohit Bansal: "TIES-Merging: Resolving Interference When Merging
Models", NeurIPS 2023, arXiv 2306.01708, section 4:

1. trim: of each tuned model only the `update_ratio` largest moves stay;
2. elect: the sign of an entry is that of the sum of its moves;
3. merge: `base + scale * mean` over the models whose move has that sign.

With one tuned model the second and third step change nothing, and at `scale: 1` this is grafting.

Differences from the paper and its code: exactly k moves stay (there, ties at the threshold stay too). Where the moves
of an entry cancel, the paper's equation leaves it as it is and the code lets it go where most entries of the model go;
`undecided` has both, with the majority of the matrix.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.merges import agreeing, mean_of_moves
from dowser_pl.functional.selection import reversed_order
from dowser_pl.methods.base import AfterFit, Layer, Need, Ranking, Reference, Scope

__all__ = ["Ties", "Undecided"]

Undecided = Literal["base", "majority"]


class Ties(Ranking, AfterFit):
    """Train everything, then trim the moves; several tuned models become one.

    Args:
        update_ratio: share of moves that the trim leaves, in [0, 1].
        scale: on the merged move (lambda in the paper, 1 where it is not tuned).
        undecided: where the moves of an entry cancel it stays at the `base` (the equation), or follows the
            `majority` of the matrix (the released code).
        scope: the trim leaves a share of each `matrix`, of each decoder `layer` or of the `model` (as published,
            the default).
    """

    reference: ClassVar[Reference] = Reference(
        title="TIES-Merging: Resolving Interference When Merging Models",
        authors="Yadav, Tam, Choshen, Raffel, Bansal",
        year=2023,
        arxiv="2306.01708",
    )

    def __init__(
        self,
        update_ratio: float = 0.2,
        scale: float = 1.0,
        undecided: Undecided = "base",
        scope: Scope = "model",
    ) -> None:
        super().__init__(update_ratio, scope)
        if undecided not in get_args(Undecided):
            raise DowserError(f"undecided must be one of {', '.join(get_args(Undecided))}, got {undecided!r}")
        self.scale = scale
        self.undecided = undecided

    @property
    def needs(self) -> frozenset[Need]:
        """The method needs the tuned weights."""
        return frozenset({"tuned"})

    def score(self, layer: Layer) -> Tensor:
        """(O, I) float32, low = moved far."""
        return reversed_order(layer.moved())

    def merge(self, layer: Layer, mask: Tensor) -> Tensor:
        """(O, I): the trimmed moves, scaled."""
        return self.merge_all([layer], [mask])

    def merge_all(self, layers: Sequence[Layer], masks: Sequence[Tensor]) -> Tensor:
        """(O, I): the mean of the trimmed moves that agree, scaled."""
        base, tuned = layers[0].weight, [layer.measured("tuned") for layer in layers]
        chosen = agreeing(base, tuned, masks, self.undecided == "majority")
        return mean_of_moves(base, tuned, chosen, self.scale)
