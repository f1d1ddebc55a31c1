"""MoFO: of each step of Adam only the entries with the largest momentum are moved.

Yupeng Chen, Senmiao Wang, Yushun Zhang, Zhihang Lin, Haozhe Zhang, Weijian Sun, Tian Ding, Ruoyu Sun: "MoFO:
Momentum-Filtered Optimizer for Mitigating Forgetting in LLM Fine-Tuning", 2024, arXiv 2407.20999, algorithm 1. With m
and v the moments of Adam, of all entries and at every step,

    W <- W - lr * [|m| among the largest alpha of its matrix] * m^ / (sqrt(v^) + eps)

m^ and v^ being m and v with their bias corrected. No entry is frozen: others are chosen as training goes on.

The paper chooses in every parameter tensor; here these are the tuned matrices, and what `model.also_train` names trains
in full. Differences between the paper and its code (`algorithms_MoFO.py`): the code is AdamW's and decays all entries
at every step, chosen or not, while the paper has no decay; `decay` has both, and without weight decay there is no
difference. The default `alpha` is that of the code's instructions, which recommend 0.05 to 0.2 (its class has 0.03).
Exactly `round(alpha * O * I)` entries are chosen, of those on the threshold the earlier ones; the code rounds down and
takes all of these.

The optimizer makes its step over all entries and keeps both moments of all; then the entries that were not chosen get
back what they were before it. It must be Adam or AdamW, of torch or bitsandbytes. Eight-bit moments choose by what is
left of m.
"""

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.masks import num_trainable
from dowser_pl.functional.selection import LOCAL, Reducer, highest_of_parts
from dowser_pl.methods.base import EachStep, Reference

__all__ = ["Decayed", "MoFO"]

Decayed = Literal["all", "chosen"]


class MoFO(EachStep):
    """Apply each step of Adam where its momentum is largest.

    Beside each matrix it keeps the base and, while a step is made, the values before it (4 bytes an entry).

    Args:
        alpha: share of each matrix that a step moves, in (0, 1]; 1 = plain Adam.
        decay: weight decay of AdamW takes hold of `all` entries at every step (the released code), or of the `chosen`
            ones.
    """

    needs_moment: ClassVar[bool] = True
    reference: ClassVar[Reference] = Reference(
        title="MoFO: Momentum-Filtered Optimizer for Mitigating Forgetting in LLM Fine-Tuning",
        authors="Chen, Wang, Zhang, Lin, Zhang, Sun, Ding, Sun",
        year=2024,
        arxiv="2407.20999",
    )

    def __init__(self, alpha: float = 0.15, decay: Decayed = "all") -> None:
        if not 0.0 < alpha <= 1.0:
            raise DowserError(f"alpha is the share of each matrix that a step moves, in (0, 1]; got {alpha}")
        if decay not in get_args(Decayed):
            raise DowserError(f"decay must be one of {', '.join(get_args(Decayed))}, got {decay!r}")
        self.alpha = alpha
        self.decay = decay

    def filtered(
        self, before: Tensor, tuned: Tensor, moment: Tensor, decayed: float, reducer: Reducer = LOCAL
    ) -> Tensor:
        """The step where |m| is largest; elsewhere no step, or its decay alone."""
        chosen = highest_of_parts(moment.abs(), lambda total: num_trainable(self.alpha, total), reducer)
        return torch.where(chosen, tuned, before * decayed if self.decay == "all" else before)
