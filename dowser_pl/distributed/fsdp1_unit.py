"""The units that PyTorch's FSDP1 gathers, and how a model that is cut into them runs outside of a training step.

FSDP1 puts the weights of a unit (a decoder layer, or all else) behind each other and cuts the line into equal parts.
Between steps a parameter is the 1-D piece that is here, a view into that part; while its unit is gathered it is whole.
What it is a piece of stands beside it (`dowser_pl.distributed.tensors.Place`).

FSDP1 gathers what the outermost module's forward pass needs, and once again for one backward pass. Text is written by
parts of the model, and the importance pass makes several backward passes over one graph: there a unit is gathered
whenever it runs, forward or backward.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils._pytree import tree_map_only

from dowser_pl.distributed.tensors import GradientHook
from dowser_pl.errors import DowserError

__all__ = [
    "FSDP1Model",
    "Unit",
    "fsdp1_model_of",
    "gather_per_unit",
]


class Unit(FullyShardedDataParallel):
    """A module that is gathered while it runs; modules and weights inside keep the names they had before.

    Attributes:
        gradient_hooks: of the gradients of single weights.
    """

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        self.gradient_hooks: OrderedDict[int, GradientHook] = OrderedDict()

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

    def waiting(self) -> list[GradientHook]:
        """Who is to be told after this backward pass, the same on every process."""
        flat: Any = self._handle.flat_param  # type: ignore[union-attr]
        return [each for each in self.gradient_hooks.values() if each.weight.requires_grad and flat.grad is not None]

    def drop_gradients(self) -> None:
        """Let go of the gradients once they are taken."""
        flat: Any = self._handle.flat_param  # type: ignore[union-attr]
        for weight in flat._params:
            weight.grad = None
        flat.grad = None


class FSDP1Model:
    """A model that is cut into units.

    Args:
        model: whose `forward` goes through the outermost unit from now on.
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
                with self.gather_per_unit():
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
    def gather_per_unit(self) -> Iterator[None]:
        """Gather each unit when it runs; see `gather_per_unit`."""
        unshards = [_Unshard(unit) for unit in self.units]
        for unshard in unshards:
            unshard.unit.forward = unshard.forward  # type: ignore[method-assign]
        try:
            with _gathered(self.root), self._within():
                yield
        finally:
            for unshard in unshards:
                del unshard.unit.forward
                unshard.leave()


def fsdp1_model_of(model: nn.Module) -> FSDP1Model | None:
    """The units of a model, or of its part that runs on text alone; None where FSDP1 has not cut it."""
    return vars(model).get("_fsdp1_model")


def gather_per_unit(model: nn.Module) -> AbstractContextManager[None]:
    """Within it parts of the model can be run by themselves, and several backward passes over one graph be made.

    FSDP1 itself gathers for the whole model alone, and for one backward pass. Here the outermost unit stays gathered,
    any other one as long as it runs, forward or backward. All processes must enter, run the same and leave together.
    """
    found = fsdp1_model_of(model)
    if found is None:
        raise DowserError(
            f"got a {type(model).__name__} that is not cut into units, expected the model or its text part"
        )
    return found.gather_per_unit()


def _gathered(unit: Unit) -> AbstractContextManager[None]:
    return FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False)


class _Unshard:
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
    def forward(ctx: Any, unshard: _Unshard, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.unshard = unshard
        return inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.unshard.leave()
        return None, *gradients
