"""Learning without forgetting on the rows that are learnt: the loss gets a pull towards what the base says there.

    weight * T^2 * mean over answer tokens of KL(softmax(base / T) || softmax(current / T))

joins the loss of a batch. Zhizhong Li, Derek Hoiem: "Learning without Forgetting", ECCV 2016, arXiv 1606.09282, with
T = 2; its gradient in the logits z is weight * T * (q_T - p_T) at each token, so that T^2 keeps its size for any T
(Hinton et al. 2015, arXiv 1503.02531). arXiv 2510.08564 compares multimodal models by it, with the defaults here; as
released (github.com/jessemelpolio/LMM_CL) its trainer does not find the labels, and takes the mean over a fifth of all
positions, at most 1000, from start, middle and end of what the batch is in a line. Here it is over the positions at
which answer tokens are said, those of the loss itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.divergence import kl_divergence

__all__ = ["KLToBase"]


@dataclass(frozen=True)
class KLToBase:
    """How a model is held to what its base says on the answers that it learns.

    Args:
        weight: of the term beside the loss of the batch; 0 = off.
        temperature: T, by which logits of both are divided.
    """

    weight: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not (0 <= self.weight < float("inf") and 0 < self.temperature < float("inf")):
            raise DowserError(
                f"got kl_to_base.weight {self.weight} and kl_to_base.temperature {self.temperature}, expected finite "
                "numbers, the weight at least 0 and the temperature above it. Fix: such as 1 and 2"
            )

    def term(self, base: Tensor, current: Tensor) -> Tensor:
        """() what joins the loss, without its weight; differentiable in `current`.

        Args:
            base: (N, V) logits of the base at the answer tokens.
            current: (N, V) logits.
        """
        if self.temperature != 1:
            precise = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (base, current))
            base, current = (each / self.temperature for each in precise)
        return kl_divergence(base, current).mean() * self.temperature**2
