"""Weights that PyTorch's FSDP1 keeps in pieces: a process holds a range of the flat positions of each, or none of it.

FSDP1 puts the weights of a unit (a decoder layer, or all else) behind each other and cuts the line into equal parts.
Between steps a parameter is the 1-D piece that is here, a view into that part; while its unit is gathered it is whole.
What it is a piece of stands beside it (:class:`Place`).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

__all__ = ["Place", "Taker", "Unit", "place_of", "put_place", "whole_shapes"]


@dataclass(frozen=True)
class Place:
    """Where the pieces of a tensor lie.

    Attributes:
        shape: of the whole.
        ends: flat position where the piece of each process ends; it begins where the one before ends.
        rank: of this process.
        unit: that gathers it.
    """

    shape: torch.Size
    ends: tuple[int, ...]
    rank: int
    unit: "Unit"

    @property
    def sizes(self) -> list[int]:
        """Entries on each process."""
        return [end - start for start, end in zip((0, *self.ends), self.ends, strict=False)]

    @property
    def here(self) -> slice:
        """Flat positions that this process holds."""
        return slice((0, *self.ends)[self.rank], self.ends[self.rank])


def place_of(tensor: Tensor) -> Place | None:
    """None for a tensor that FSDP1 does not spread, and for what is computed from one that it does."""
    return getattr(tensor, "_place", None)


def put_place(tensor: Any, place: Place | None) -> None:
    """Say what the tensor is a piece of."""
    if place is not None:
        tensor._place = place


@dataclass(frozen=True)
class Taker:
    """What is to be told of averaged gradients.

    Attributes:
        weight: whose they are.
        take: gets that weight, with the gradient of the piece that is here.
        always: whether all of the weight takes part in each backward pass.
    """

    weight: nn.Parameter
    take: Callable[[Tensor], None]
    always: bool


class Unit(FullyShardedDataParallel):
    """A module that is gathered while it runs; modules and weights inside keep the names they had before.

    Attributes:
        takers: of the gradients of single weights.
    """

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        self.takers: OrderedDict[int, Taker] = OrderedDict()

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """This one, then the wrapped one and all in it as if they stood in its place."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        yield from self.module.named_modules(memo, prefix, remove_duplicate)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The pieces that are here, under these names; nothing is gathered."""
        return self.module.state_dict(*args, **kwargs)

    def waiting(self) -> list[Taker]:
        """Who is to be told after this backward pass, the same on every process."""
        flat: Any = self._handle.flat_param  # type: ignore[union-attr]
        return [each for each in self.takers.values() if each.weight.requires_grad and flat.grad is not None]

    def drop_gradients(self) -> None:
        """Once they are taken."""
        flat: Any = self._handle.flat_param  # type: ignore[union-attr]
        for weight in flat._params:
            weight.grad = None
        flat.grad = None


@contextmanager
def whole_shapes(model: nn.Module) -> Iterator[None]:
    """Within it weights have the shapes and bytes of the whole, and no values; for those who only count."""
    own = [(module, name, weight) for module in model.modules() for name, weight in module._parameters.items()]
    stand_ins: dict[int, nn.Parameter] = {}
    for _, _, weight in own:
        if weight is not None and (place := place_of(weight)) is not None:
            empty = torch.empty(place.shape, dtype=weight.dtype, device="meta")
            stand_ins[id(weight)] = nn.Parameter(empty, requires_grad=weight.requires_grad)
    try:
        for module, name, weight in own:
            module._parameters[name] = stand_ins.get(id(weight), weight)
        yield
    finally:
        for module, name, weight in own:
            module._parameters[name] = weight
