"""Clipping by the norm of gradients that processes hold in parts."""

from collections.abc import Sequence

import torch
from torch import nn

from dowser_pl.distributed import collectives
from dowser_pl.distributed.tensors import local, to_be_sent

__all__ = ["clip_by_norm"]


@torch.no_grad()
def clip_by_norm(parameters: Sequence[nn.Parameter], max_norm: float) -> None:
    """``torch.nn.utils.clip_grad_norm_`` for parameters of which each process holds a part; all must call it.

    The norms of all parts are put beside each other before they are added, so that one process alone gets what PyTorch
    computes, bit for bit.

    Args:
        parameters: in the same order on every process.
        max_norm: over all parts of all parameters.
    """
    gradients = {number: local(each.grad) for number, each in enumerate(parameters) if each.grad is not None}
    mine = [torch.linalg.vector_norm(each.float()) for each in gradients.values()]
    norms = torch.zeros(len(parameters), collectives.world_size())
    norms[list(gradients), collectives.rank()] = torch.stack(mine).cpu() if mine else torch.zeros(0)
    total = torch.linalg.vector_norm(collectives.add_up(to_be_sent(norms))).cpu()
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients.values():
        gradient.mul_(factor.to(gradient.device))
