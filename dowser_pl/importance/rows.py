"""Matrices that skip the positions without a gradient on their way back.

Only one position of a prompt is probed, so behind the attention of the last decoder layer every other position's
gradient is zero: multiplying those rows by the weight is most of that layer's backward pass.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = ["live_rows_only"]


_BLOCK = 32  # rows are multiplied in so many: products of a few rows round differently from those of many


class _LiveRows(torch.autograd.Function):
    """``linear`` whose backward pass multiplies the rows that are not all zero; weights take no gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows = gradient.flatten(0, -2)
        if bool(rows[0].any()):  # as nearly everywhere; looking at every row would cost a pass over all
            return gradient @ ctx.weight, None, None
        live = rows.any(dim=-1).nonzero().flatten()
        some = rows.new_zeros(-(-len(live) // _BLOCK) * _BLOCK, rows.shape[1])
        some[: len(live)] = rows[live]
        result = rows.new_zeros(len(rows), ctx.weight.shape[1])
        result[live] = (some @ ctx.weight)[: len(live)]
        return result.view(*gradient.shape[:-1], -1), None, None


@contextmanager
def live_rows_only(layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within it, plain linear modules on the CPU skip zero rows in the backward pass, to the same result.

    Looking at a row would make a GPU wait, which costs more than it saves there. Quantized layers, those that something
    else has wrapped already, and any layer under autocast stay as they are too.
    """
    plain = [
        module
        for module in layers.values()
        if type(module) is nn.Linear
        and module.weight.device.type == "cpu"
        and "forward" not in vars(module)
        and not torch.is_autocast_enabled("cpu")
    ]
    for module in plain:
        module.forward = _forward(module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in plain:
            del module.forward


def _forward(module: nn.Linear):  # type: ignore[no-untyped-def]
    return lambda inputs: _LiveRows.apply(inputs, module.weight, module.bias)
