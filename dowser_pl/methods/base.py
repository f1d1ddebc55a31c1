"""What a method is: how much of each weight's move is allowed, and when that is decided.

A method holds hyper-parameters and decisions, never tensors: the callback measures what the method needs,
hands it one layer at a time, and owns the resulting masks.

Legend: O outputs, I inputs of a matrix; N prompts.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from dowser_pl.maths.merges import masked_move

__all__ = ["Layer", "Method", "Need", "Reference"]

Need = Literal["activation", "sensitivity", "gradient", "tuned"]
Moment = Literal["before_fit", "each_step", "after_fit"]


@dataclass(frozen=True)
class Reference:
    """Where a method was published; ``arxiv`` is empty for folklore."""

    title: str
    authors: str
    year: int
    arxiv: str = ""


@dataclass(frozen=True)
class Layer:
    """One matrix and what was measured of it; fields that no method asked for are None.

    Attributes:
        name: run-time name of the matrix' module, as in ``model.named_modules()``.
        weight: (O, I) pretrained weights.
        activation: (N, I) float32, per prompt the mean |h_j| over positions.
        abs_gradient: (N, O) float32, per prompt the mean |g_i| over probes and positions.
        square_gradient: (N, O) float32, per prompt the mean g_i^2 over probes and positions.
        tuned: (O, I) weights after training.
    """

    name: str
    weight: Tensor
    activation: Tensor | None = None
    abs_gradient: Tensor | None = None
    square_gradient: Tensor | None = None
    tuned: Tensor | None = None

    def measured(self, what: Literal["activation", "abs_gradient", "square_gradient", "tuned"]) -> Tensor:
        """The measurement ``what``.

        Raises:
            ValueError: if it was not taken. A weight without a score is never left trainable.
        """
        value: Tensor | None = getattr(self, what)
        if value is None:
            raise ValueError(
                f"{self.name} has no {what.replace('_', ' ')}: it was not measured, so this weight cannot be "
                "scored. Methods list what they need in `needs`; factors from a cache file must cover every "
                "layer that is tuned"
            )
        return value


class Method(ABC):
    """A rule that decides, matrix by matrix, what may move.

    Attributes:
        needs: what the callback has to measure before :meth:`mask` is called.
        moment: when the mask is decided.
        reference: the publication.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    moment: ClassVar[Moment] = "before_fit"
    reference: ClassVar[Reference]

    update_ratio: float
    """Trainable share of each matrix, in [0, 1] (the paper's rho)."""

    @abstractmethod
    def mask(self, layer: Layer) -> Tensor:
        """(O, I) bool, True = trainable, exactly ``round(update_ratio * O * I)`` of them."""

    def merge(self, layer: Layer, mask: Tensor) -> Tensor:
        """(O, I) final weights: ``base + mask * (tuned - base)``."""
        return masked_move(layer.weight, layer.measured("tuned"), mask)

    def settings(self) -> dict[str, str | int | float]:
        """Name and hyper-parameters, as they stand in reports and checkpoints."""
        return {"method": type(self).__name__, **vars(self)}
