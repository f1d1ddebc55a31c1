"""Weights that PyTorch's FSDP1 keeps in pieces: a process holds a range of the flat positions of each, or none of it.

FSDP1 puts the weights of a unit (a decoder layer, or all else) behind each other and cuts the line into equal parts.
Between steps a parameter is the 1-D piece that is here, a view into that part; while its unit is gathered it is whole.
What it is a piece of stands beside it (:class:`Place`).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils._pytree import tree_map_only

__all__ = ["Flat", "Place", "Unit", "apart", "flat_of", "place_of", "put_place", "whole_shapes"]


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


class Unit(FullyShardedDataParallel):
    """A module that is gathered while it runs; modules and weights inside keep the names they had before.

    Attributes:
        takers: what is to be told of a weight whose gradient is averaged, with that weight.
    """

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        self.takers: OrderedDict[int, tuple[nn.Parameter, Callable[[Tensor], None]]] = OrderedDict()

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

    def hand_over(self) -> None:
        """Tell the takers of the gradients of the pieces that are here, then let go of them."""
        flat: Any = self._handle.flat_param  # type: ignore[union-attr]
        if flat.grad is None:
            return
        for weight, take in list(self.takers.values()):
            if weight.requires_grad:
                if weight.grad is None:  # no piece of it is here; others have some
                    weight.grad = torch.empty_like(weight)
                take(weight)
        for weight in flat._params:
            weight.grad = None
        flat.grad = None


class Flat:
    """A model that is cut into units.

    Args:
        model: whose ``forward`` goes through the outermost unit from now on.
        root: that unit, which holds the model and stands outside of it.
        units: the others, in it.
    """

    def __init__(self, model: nn.Module, root: Unit, units: list[Unit]) -> None:
        self.root, self.units = root, units
        self._inside = False
        model.forward = self._through(model.forward)

    def _through(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def gathered(*args: Any, **kwargs: Any) -> Any:
            with self._within() as inside:
                return forward(*args, **kwargs) if inside else self.root(*args, **kwargs)

        return gathered

    @contextmanager
    def _within(self) -> Iterator[bool]:
        before, self._inside = self._inside, True
        try:
            yield before
        finally:
            self._inside = before

    def hand_over(self) -> None:
        """After a backward pass; see :meth:`Unit.hand_over`."""
        for unit in (*self.units, self.root):
            unit.hand_over()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """See :func:`apart`."""
        visits = [_Visit(unit) for unit in self.units]
        for visit in visits:
            visit.unit.forward = visit.forward  # type: ignore[method-assign]
        try:
            with _gathered(self.root), self._within():
                yield
        finally:
            for visit in visits:
                del visit.unit.forward
                visit.leave()


def flat_of(model: nn.Module) -> Flat | None:
    """Of a model, or of the part that runs on text alone; None where FSDP1 has not cut it."""
    return vars(model).get("_flat")


def apart(model: nn.Module) -> AbstractContextManager[None]:
    """Within it parts of the model can be run by themselves, and several backward passes over one graph be made.

    FSDP1 itself gathers for the whole model alone, and for one backward pass. Here the outermost unit stays gathered,
    any other one as long as it runs, forward or backward. All processes must enter, run the same and leave together.
    """
    flat = flat_of(model)
    if flat is None:
        raise ValueError(
            f"got a {type(model).__name__} that is not cut into units, expected the model or its text part"
        )
    return flat.apart()


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


def _gathered(unit: Unit) -> AbstractContextManager[None]:
    return FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False)


class _Visit:
    """A unit that is gathered when it runs, and again when a gradient comes back to it."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self._open: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.enter()
        if torch.is_grad_enabled():
            args, kwargs = self._leaving(args, kwargs)
        output = self.unit.module(*args, **kwargs)
        self.leave()
        if torch.is_grad_enabled():
            tree_map_only(Tensor, lambda each: each.requires_grad and each.register_hook(self.enter), output)
        return output

    def enter(self, *_: Any) -> None:
        if self._open is None:
            self._open = _gathered(self.unit)
            self._open.__enter__()

    def leave(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            opened.__exit__(None, None, None)

    def _leaving(self, *inputs: Any) -> Any:
        """The inputs, which tell when all of their gradients are complete."""
        tensors: list[Tensor] = []
        tree_map_only(Tensor, lambda each: tensors.append(each) if each.requires_grad else None, inputs)
        if not tensors:
            return inputs
        told = iter(_Leave.apply(self, *tensors))
        return tree_map_only(Tensor, lambda each: next(told) if each.requires_grad else each, inputs)


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, visit: _Visit, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.visit = visit
        return inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.visit.leave()
        return None, *gradients
