"""How a model that FSDP1 has cut into units runs: through FSDP1 in training, and without it in all else.

FSDP1 gathers what the outermost module's forward pass needs, and once again for one backward pass. Text is written by
parts of the model, and the importance pass makes several backward passes over one graph: there a unit is gathered
whenever it runs, forward or backward.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils._pytree import tree_map_only

from dowser_pl.distributed.fsdp1_unit import Unit

__all__ = ["Flat", "apart", "flat_of"]


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
            if self._inside:
                return forward(*args, **kwargs)
            if not torch.is_grad_enabled():  # FSDP1 would keep the outermost unit until a backward pass
                with self.apart():
                    return forward(*args, **kwargs)
            with self._within():
                return self.root(*args, **kwargs)

        return gathered

    @contextmanager
    def _within(self) -> Iterator[None]:
        before, self._inside = self._inside, True
        try:
            yield
        finally:
            self._inside = before

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
