"""The leading singular directions of a matrix, and what leaves them alone.

With W0 = U S V^T and the first k columns U_k, V_k, a move D between projections,

    W = W0 + P_L D P_R,    P_L = I - U_k U_k^T,    P_R = I - V_k V_k^T,

has W V_k = W0 V_k = U_k S_k and U_k^T W = U_k^T W0 = S_k V_k^T: the k leading singular triples of W0 are triples of W.
Xiong, Xie: "OPLoRA: Orthogonal Projection LoRA Prevents Catastrophic Forgetting during Parameter-Efficient
Fine-Tuning", 2025, arXiv 2510.13003.

Of large matrices the directions are found by subspace iteration from random vectors: Halko, Martinsson, Tropp: "Finding
structure with randomness", SIAM Review 2011, arXiv 0909.4061, algorithms 4.4 and 5.1. What is left of an error falls as
(s_{k+65} / s_k)^49 with the singular values s; W V_k = W0 V_k and U_k^T W = U_k^T W0 hold whatever it is.

Legend: O outputs, I inputs of a matrix, k directions.
"""

import torch
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.null_space import Directions
from dowser_pl.functional.random_streams import stream

__all__ = ["singular_directions"]

_SMALL = 1024  # outputs or inputs up to which all singular vectors are computed
_FEW = 4  # so many times fewer than all are few; of more, all take no longer
_MORE = 64  # random vectors beyond k
_ROUNDS = 24  # of multiplying by W W^T


def singular_directions(weight: Tensor, rank: int) -> tuple[Directions, Directions]:
    """U_k and V_k, all of which is taken out: the first of outputs (`left`), the second of inputs.

    Computed in float64 (in float32 on Apple's GPUs), kept in float32.

    Args:
        weight: (O, I), W0.
        rank: k, at least 1 and less than O and I.

    Raises:
        DowserError: if the rank leaves nothing to move, or a weight is not finite.
    """
    least = min(weight.shape)
    if not 1 <= rank < least:
        raise DowserError(
            f"got {rank} singular directions to preserve of a matrix of shape {tuple(weight.shape)}, expected at least "
            f"1 and fewer than its {least}: with all of them nothing may move. Set a smaller --dowser.method.preserve"
        )
    exact = weight.detach().to(torch.float32 if weight.device.type == "mps" else torch.float64)
    if not bool(exact.isfinite().all()):
        raise DowserError(f"got a matrix of shape {tuple(weight.shape)} with entries that are not finite numbers")
    small = least <= max(_SMALL, _FEW * rank)
    left, right = _leading(exact, rank) if small else _iterated(exact, rank)
    shares = torch.ones(rank, dtype=torch.float32, device=weight.device)
    return (
        Directions(left.float().contiguous(), shares, left=True),
        Directions(right.float().contiguous(), shares),
    )


def _leading(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    return left[:, :rank], right[:rank].T


def _iterated(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    outputs, inputs = weight.shape
    width = min(rank + _MORE, outputs, inputs)
    start = torch.randn((inputs, width), generator=stream(0, "singular", outputs, inputs), dtype=torch.float32)
    basis = torch.linalg.qr(weight @ start.to(weight))[0]
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.T @ basis)[0])[0]
    left, right = _leading(basis.T @ weight, rank)
    return basis @ left, right
