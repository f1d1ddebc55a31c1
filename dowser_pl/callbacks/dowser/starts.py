"""What adapters begin with that take over a part of their matrices (`dowser_pl/masking/held.py`)."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from dowser_pl.distributed import collectives
from dowser_pl.errors import DowserError
from dowser_pl.functional.adapter_starts import corda_start, lora_null_start
from dowser_pl.methods import LoraStart
from dowser_pl.models.lora import Adapters
from dowser_pl.models.quantized import base_weight

__all__ = ["adapter_starts", "trained_parts"]

_RULES: dict[str, Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]] = {
    "lora_null": lora_null_start,
    "corda": corda_start,
}


def adapter_starts(
    adapters: Adapters, settings: LoraStart, moments: Iterable[tuple[list[str], Tensor]]
) -> dict[str, Tensor]:
    """[A0; A0] and [B0, -B0] of every matrix, with s B0 A0 as the rule has it; those of the first process on all.

    Args:
        adapters: beside the base, whose weights are read.
        settings: of the run.
        moments: names of every A with one input -> its second moment (I, I).

    Returns:
        Name of every A -> (r, I), of every B -> (O, r), float32.

    Raises:
        DowserError: see the rules.
    """
    sources, found = adapters.sources, dict[str, Tensor]()
    sinks = dict(zip(sources, adapters.sinks, strict=True))
    for names, moment in moments:
        for name in names:
            half = len(adapters.parts[name].weight) // 2
            left, right = _RULES[settings.rule](base_weight(sources[name]), moment, half)
            left, right = (_of_first(each * adapters.scale**-0.5) for each in (left, right))
            found |= {name: torch.cat([right, right]), sinks[name]: torch.cat([left, -left], dim=1)}
    return {name: found[name] for name in adapters.parts}


def trained_parts(weights: Mapping[str, Tensor], settings: LoraStart) -> dict[str, tuple[int, int]]:
    """Name of every A and B -> (axis, count): that so many of its first rows (0) or columns (1) are trained.

    Args:
        weights: name -> A (r, I) or B (O, r).
        settings: of the run.

    Raises:
        DowserError: if the rank has no half.
    """
    trained: dict[str, tuple[int, int]] = {}
    for name, weight in weights.items():
        axis = 0 if ".lora_A." in name else 1
        rank = weight.shape[axis]
        if rank % 2:
            raise DowserError(
                f"got model.lora.r {rank} with dowser.method.start, expected an even rank: one half is trained, the "
                f"other is what the base gives up for it. Set --model.lora.r {rank + 1}"
            )
        trained[name] = axis, 0 if settings.freeze and axis == 0 else rank // 2
    return trained


def _of_first(mine: Tensor) -> Tensor:
    """Kernels may round differently, and vectors have either sign."""
    return mine if collectives.world_size() == 1 else collectives.broadcast(mine).to(mine.device)
