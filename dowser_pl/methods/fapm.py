"""FAPM: after training, moves that are large but small beside the weight they change are kept.

Wei Huang, Anda Cheng, Yinggui Wang: "Mitigating Catastrophic Forgetting in Large Language Models with Forgetting-aware
Pruning", 2025, arXiv 2509.08255. The score of each move D = W - W0 of a matrix is

    S = |D| - mean(|W0|) * |D| / |W0|

with the mean over the matrix; the highest `update_ratio` keep their tuned values, the rest go back to the base (the
sparsity of the paper is `1 - update_ratio`). S is positive where a weight is larger than the mean, so that up to about
the share of such weights this keeps the largest moves of large weights.

What the paper leaves open: where W0 is 0, S is its limit, minus infinity, also for D = 0, and such an entry is kept
only if all others are. Exactly k entries are kept. There is no public code to compare with. Scores are compared with
one bit less than a float32 has, ties going to the earlier entry.
"""

from typing import ClassVar

from torch import Tensor

from dowser_pl.functional.merges import forgetting_aware
from dowser_pl.functional.selection import signed_order
from dowser_pl.methods.base import AfterFit, Layer, Need, Ranking, Reference, Scope

__all__ = ["FAPM"]


class FAPM(Ranking, AfterFit):
    """Train everything, then keep moves that are large, and small beside their weight; put the rest back.

    Args:
        update_ratio: share of entries that keep their tuned values, in [0, 1].
        scope: share of each `matrix` (as the score is), of each decoder `layer` or of the `model`.
    """

    reference: ClassVar[Reference] = Reference(
        title="Mitigating Catastrophic Forgetting in Large Language Models with Forgetting-aware Pruning",
        authors="Huang, Cheng, Wang",
        year=2025,
        arxiv="2509.08255",
    )

    def __init__(self, update_ratio: float = 0.1, scope: Scope = "matrix") -> None:
        super().__init__(update_ratio, scope)

    @property
    def needs(self) -> frozenset[Need]:
        """The method needs the tuned weights."""
        return frozenset({"tuned"})

    def score(self, layer: Layer) -> Tensor:
        """(O, I) float32, low = kept: the order of -S."""
        return signed_order(-forgetting_aware(layer.weight, layer.moved()))
