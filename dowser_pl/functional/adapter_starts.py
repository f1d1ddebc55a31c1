"""Where an adapter begins that takes over a part of its matrix: B0 A0, of W and of what its inputs are like.

With C (I, I) the mean of h h^T over inputs h, two ways to choose r directions that inputs hardly use:

LoRA-Null: the r eigenvectors U of C with the least eigenvalues,

    B0 A0 = W U U^T = P diag(s) Q^T,    B0 = P diag(s)^1/2,    A0 = diag(s)^1/2 Q^T.

Pengwei Tang, Xiaolin Hu, Yong Liu, Lizhong Ding, Dongjie Zhang, Xing Wu, Debing Zhang: "Put the Space of LoRA
Initialization to the Extreme to Preserve Pre-trained Knowledge" (at first "LoRA-Null: Low-Rank Adaptation via Null
Space for Large Language Models"), 2025, arXiv 2503.02659. All rows of A0 lie in the span of U.

CorDA, where knowledge is preserved: the r least components of W C',

    W C' = P diag(s) Q^T,    W = P diag(s) Q^T C'^-1,    B0 = P_r diag(s_r)^1/2,    A0 = diag(s_r)^1/2 Q_r^T C'^-1,

with C' = C + .01 mean(diag C) I. Yibo Yang, Xiaojie Li, Zhongzhu Zhou, Shuaiwen Leon Song, Jianlong Wu, Liqiang Nie,
Bernard Ghanem: "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models for Task-Aware
Parameter-Efficient Fine-tuning", NeurIPS 2024, arXiv 2406.05223. Its code and peft's double the .01 until an inverse in
float32 is near enough; in float64 it always is. Both papers' codes divide what a sample takes in by its largest entry
before C is summed; here all tokens count alike.

Computed in float64 (in float32 on Apple's GPUs), kept in float32. Legend: O outputs, I inputs of a matrix, r rank.
"""

import torch
from torch import Tensor

from dowser_pl.errors import DowserError

__all__ = ["corda_start", "lora_null_start"]

_DAMPING = 0.01


def lora_null_start(weight: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B0 and A0 of LoRA-Null.

    Args:
        weight: (O, I), W.
        moment: (I, I) symmetric, C.
        rank: r, at most O and I.

    Returns:
        (O, r) and (r, I) float32.

    Raises:
        DowserError: if the rank is too large, or nothing is known of the inputs.
    """
    weight, moment = _exact(weight, moment, rank)
    least = torch.linalg.eigh(moment)[1][:, :rank]
    left, values, right = torch.linalg.svd(weight @ least, full_matrices=False)
    return _split(left, values, right @ least.T)


def corda_start(weight: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B0 and A0 of CorDA, where knowledge is preserved.

    Args:
        weight: (O, I), W.
        moment: (I, I) symmetric, C.
        rank: r, at most O and I.

    Returns:
        (O, r) and (r, I) float32.

    Raises:
        DowserError: if the rank is too large, or nothing is known of the inputs.
    """
    weight, moment = _exact(weight, moment, rank)
    moment = moment + _DAMPING * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
    left, values, right = torch.linalg.svd(weight @ moment, full_matrices=False)
    return _split(left[:, -rank:], values[-rank:], torch.linalg.solve(moment, right[-rank:].T).T)


def _exact(weight: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    if not 1 <= rank <= min(weight.shape):
        raise DowserError(
            f"got {rank} directions for an adapter to begin in, of a matrix of shape {tuple(weight.shape)}, expected "
            f"at least 1 and at most its {min(weight.shape)}. Set a smaller --model.lora.r"
        )
    dtype = torch.float32 if weight.device.type == "mps" else torch.float64
    weight, moment = weight.detach().to(dtype), moment.to(weight.device, dtype)
    if not (bool(weight.isfinite().all()) and bool(moment.isfinite().all()) and float(moment.trace()) > 0):
        raise DowserError(
            f"got a matrix of shape {tuple(weight.shape)} and a second moment of its inputs with trace "
            f"{float(moment.trace())}, expected finite numbers and a trace above 0: load the model in bfloat16 or "
            "float32 (--model.dtype)"
        )
    return weight, moment


def _split(left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    root = values.sqrt()
    return (left * root).float().contiguous(), (root[:, None] * right).float().contiguous()
