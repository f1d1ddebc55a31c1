"""Methods that decide after every optimizer step, softly: all entries train, and a rule says how far they got.

Legend: O outputs, I inputs of a matrix; t steps made so far, this one included.
"""

from typing import ClassVar

import torch
from torch import Tensor

from dowser_pl.functional.pieces import ALONE, Shards
from dowser_pl.methods.base import Layer, Method, Moment

__all__ = ["EachStep"]


class EachStep(Method):
    """A method whose mask, if it has one, changes with every step; no entry is frozen.

    The callback keeps base, sum of gradients and what :meth:`prior` returns beside each matrix, all on its device:
    the bytes of the weights, 4 and 4 per entry, the latter two where they are asked for.

    Attributes:
        sums_gradients: whether :meth:`step` wants the sum of all gradients so far.
    """

    moment: ClassVar[Moment] = "each_step"
    sums_gradients: ClassVar[bool] = False
    update_ratio: None = None

    @property
    def num_kept(self) -> int:
        """How many float32 tensors of a matrix' shape are kept beside its base."""
        return self.sums_gradients + bool(self.needs)

    def mask(self, layer: Layer) -> Tensor:
        """(O, I) all True: every entry may move, how far is decided as training goes."""
        return torch.ones_like(layer.weight, dtype=torch.bool)

    def prior(self, layer: Layer) -> Tensor | None:
        """(O, I) float32, made of the base before training and kept through it; None = nothing.

        Args:
            layer: the base weight and what was measured of it.
        """
        return None

    def penalty(self, base: Tensor, tuned: Tensor) -> Tensor | None:
        """(O, I) float32 to add to the gradient before it is clipped; None = nothing.

        Args:
            base: (O, I) float32 pretrained weights.
            tuned: (O, I) float32 weights as they are.
        """
        return None

    def step(
        self, base: Tensor, tuned: Tensor, gradients: Tensor | None, prior: Tensor | None, shards: Shards = ALONE
    ) -> Tensor:
        """(O, I) float32 weights to go on with; may be ``tuned`` itself.

        Args:
            base: (O, I) float32 pretrained weights.
            tuned: (O, I) float32 weights as the optimizer's step left them.
            gradients: (O, I) float32, the sum over t steps of what the optimizer took: of the mean over all tokens of
                accumulated batches and processes, penalised and clipped; None unless ``sums_gradients``.
            prior: what :meth:`prior` returned.
            shards: where the model is spread over processes, all tensors are of the part of a matrix that is here
                (1-D under FSDP1), and what is asked of the whole matrix is asked through this; all processes call
                this for every matrix in the same order.
        """
        return tuned
