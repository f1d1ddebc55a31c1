"""SoftDowser: SPIDER's update with Model-Dowser's importance; a combination of this package, not of a paper.

What the base needs an entry for is told by Model-Dowser's data-free score (arXiv 2602.04509) instead of the size of the
weight (arXiv 2411.10928): I = percentile of the score within its matrix, measured before training. All else is
`spider.py`. See `model_dowser.py` for the estimators.
"""

from typing import ClassVar

from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.selection import LOCAL, Reducer
from dowser_pl.functional.soft_masks import within_matrix
from dowser_pl.methods.base import Layer, Need, Reference
from dowser_pl.methods.model_dowser import Estimator, ModelDowser
from dowser_pl.methods.spider import Spider

__all__ = ["SoftDowser"]


class SoftDowser(Spider):
    """Weigh Model-Dowser's score against the summed gradient, after every step.

    Keeps what `Spider` keeps, and the percentiles (4 bytes an entry).

    Args:
        soft: keep a share G / (I + G) of a move where I < G; False = all of it.
        rescale: divide the shares of a matrix by the mean of the non-zero ones and cut them at 1.
        estimator: `authors`, `paper`, `token` or `weight`, as for `ModelDowser`.
        group_size: prompts averaged before the product, for `authors` only.
    """

    reference: ClassVar[Reference] = Reference(
        title="SPIDER's update (arXiv 2411.10928) with Model-Dowser's importance (arXiv 2602.04509)", authors="", year=0
    )

    def __init__(
        self,
        soft: bool = True,
        rescale: bool = True,
        estimator: Estimator = "authors",
        group_size: int = 4,
    ) -> None:
        super().__init__(soft, rescale)
        ModelDowser(0.0, estimator, group_size)  # refuses what it cannot score with
        self.estimator = estimator
        self.group_size = group_size

    @property
    def needs(self) -> frozenset[Need]:
        """What the score of Model-Dowser needs."""
        return self._scored().needs

    @property
    def prompts_per_row(self) -> int:
        """The number of prompts that the score of Model-Dowser averages into a row."""
        return self._scored().prompts_per_row

    def prior(self, layer: Layer) -> Tensor:
        """(O, I) float32 in (0, 1): percentile of the score within the matrix."""
        return within_matrix(self._scored().score(layer))

    def importance(self, base: Tensor, prior: Tensor | None, reducer: Reducer = LOCAL) -> Tensor:
        """The importance that `prior` made before training.

        Raises:
            DowserError: without it.
        """
        if prior is None:
            raise DowserError("SoftDowser weighs importance, got none; pass on what prior() returned")
        return prior

    def _scored(self) -> ModelDowser:
        return ModelDowser(0.0, self.estimator, self.group_size)
