"""Where in a model a change shows: how far the output of each decoder layer is from what it was in the base.

Of layer l it is ||x_l - x0_l||_F / ||x0_l||_F, over the positions of some rows that count; x_l (N, H) is what the layer
hands on, its residual stream included.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dowser_pl.importance.base_outputs import current_logits
from dowser_pl.importance.probe import probing_mode
from dowser_pl.importance.prompts import Prompt, alike, counted
from dowser_pl.models.layers import decoder_layers

__all__ = ["layer_drift", "layer_outputs"]


def layer_outputs(network: PreTrainedModel, rows: Sequence[Prompt], batch_size: int) -> list[list[Tensor]]:
    """What each decoder layer hands on, kept in host memory in the precision of the model.

    Args:
        network: the model.
        rows: decoder-only ones.
        batch_size: rows a forward pass.

    Returns:
        One entry a forward pass: per layer, first to last, (N, H) at the positions of its rows that count.
    """
    return [[each.cpu() for each in outputs] for outputs in _passes(network, rows, batch_size)]


def layer_drift(
    network: PreTrainedModel, rows: Sequence[Prompt], before: Sequence[Sequence[Tensor]], batch_size: int
) -> list[float]:
    """How far each decoder layer's output is from what it was, first to last; 0 = the same, 1 = as far as it is large.

    Args:
        network: the changed model.
        rows: those of `before`.
        before: what `layer_outputs` returned for the base with this batch size.
        batch_size: rows a forward pass.
    """
    squares = [
        torch.stack(
            [torch.stack([_square(now - then.to(now)), _square(then)]) for now, then in zip(*both, strict=True)]
        )
        for both in zip(_passes(network, rows, batch_size), before, strict=True)
    ]
    apart, size = torch.stack(squares).sum(0).unbind(1)
    return torch.where(apart == 0, 0.0, (apart / size).sqrt()).tolist()  # a layer that no row entered handed on nothing


def _square(values: Tensor) -> Tensor:
    return values.double().square().sum().cpu()


@torch.no_grad()
def _passes(network: PreTrainedModel, rows: Sequence[Prompt], batch_size: int) -> Iterator[list[Tensor]]:
    with probing_mode(network), _kept(decoder_layers(network)) as outputs:
        for numbers in alike(rows, batch_size):
            chosen = [rows[number] for number in numbers]
            current_logits(network, chosen)
            positions = nn.utils.rnn.pad_sequence([counted(row) for row in chosen], batch_first=True)
            here = {number: each[positions.to(each.device)] for number, each in outputs.items()}
            nothing = next(iter(here.values()))[:0]
            yield [here.get(number, nothing) for number in range(len(decoder_layers(network)))]
            outputs.clear()


@contextmanager
def _kept(layers: nn.ModuleList) -> Iterator[dict[int, Tensor]]:
    """What the layers hand on meanwhile, by their number; text passes by those that read pictures alone."""
    seen: dict[int, Tensor] = {}

    def keep(number: int, _: nn.Module, __: Any, output: Any) -> None:
        seen[number] = output if isinstance(output, Tensor) else output[0]

    hooks = [layer.register_forward_hook(partial(keep, number)) for number, layer in enumerate(layers)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
