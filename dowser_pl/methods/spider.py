"""SPIDER: after every step, entries go back to the base as far as the base needed them more than the task does.

Wenke Huang, Jian Liang, Zekun Shi, Didi Zhu, Guancheng Wan, He Li, Bo Du, Dacheng Tao, Mang Ye: "Learn from Downstream
and Be Yourself in Multimodal Large Language Models Fine-Tuning", ICML 2025, arXiv 2411.10928.

The defaults are those of the released code (`Code/train/SPIDER.py`): signed gradients are summed over steps and the
size of the sum is taken, masks are divided by the mean of their non-zero entries and cut at 1, and the optimizer's
moments are left alone. Options that differ from it:

- `rescale=False`: `M = G / (I + G)` as it stands.
- `soft=False`: a mask of zeros and ones, `M = 1 where I < G`; rescaling changes nothing then.

Differences that are not options: what is summed are the gradients that the optimizer took, after clipping; entries of a
matrix that are all of one size, for which that code computes NaN, get 1/2; the sums are part of a checkpoint.
"""

from typing import ClassVar

from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.merges import masked_move
from dowser_pl.functional.selection import LOCAL, Reducer
from dowser_pl.functional.soft_masks import rescaled, soft_mask, standardised
from dowser_pl.methods.base import EachStep, Reference

__all__ = ["Spider"]


class Spider(EachStep):
    """Weigh the size of the pretrained weight against that of the summed gradient, after every step.

    Beside each matrix it keeps the base and the sum of gradients (4 bytes an entry); the importance of the base is
    computed anew after each step, one matrix at a time.

    Args:
        soft: keep a share G / (I + G) of a move where I < G; False = all of it.
        rescale: divide the shares of a matrix by the mean of the non-zero ones and cut them at 1.
    """

    sums_gradients: ClassVar[bool] = True
    reference: ClassVar[Reference] = Reference(
        title="Learn from Downstream and Be Yourself in Multimodal Large Language Models Fine-Tuning",
        authors="Huang, Liang, Shi, Zhu, Wan, Li, Du, Tao, Ye",
        year=2025,
        arxiv="2411.10928",
    )

    def __init__(self, soft: bool = True, rescale: bool = True) -> None:
        self.soft = soft
        self.rescale = rescale

    def importance(self, base: Tensor, prior: Tensor | None, reducer: Reducer = LOCAL) -> Tensor:
        """(O, I) float32 in [0, 1]: I = sigmoid(z(|W0|))."""
        return standardised(base, reducer)

    def share(self, importance: Tensor, gradients: Tensor, reducer: Reducer = LOCAL) -> Tensor:
        """(O, I) float32 in [0, 1], how much of each move is kept.

        Args:
            importance: (O, I) float32 in [0, 1].
            gradients: (O, I) float32, summed over the steps so far.
            reducer: see `step`.
        """
        sensitivity = standardised(gradients, reducer)
        if not self.soft:
            return (importance < sensitivity).float()
        mask = soft_mask(importance, sensitivity)
        return rescaled(mask, reducer) if self.rescale else mask

    def step(
        self, base: Tensor, tuned: Tensor, gradients: Tensor | None, prior: Tensor | None, reducer: Reducer = LOCAL
    ) -> Tensor:
        """`W0 (1 - M) + W M`.

        Raises:
            DowserError: without gradients.
        """
        if gradients is None:
            raise DowserError(f"{type(self).__name__} weighs gradients, got none; sum them over the steps so far")
        return masked_move(base, tuned, self.share(self.importance(base, prior, reducer), gradients, reducer))
