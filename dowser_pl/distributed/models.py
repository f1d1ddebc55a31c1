"""Models whose weights are sharded over processes, which all must run together: whether, where, and parts of them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from dowser_pl.distributed.collectives import all_reduce_counts
from dowser_pl.distributed.fsdp1_unit import Unit, fsdp1_model_of, gather_per_unit
from dowser_pl.distributed.tensors import GradientHook

__all__ = ["device_of", "generating", "is_sharded_model", "measuring", "run_reduced_grad_hooks"]


def is_sharded_model(model: nn.Module) -> bool:
    """Whether weights of the model are sharded over processes, so that all must run it together."""
    return any(isinstance(module, FSDPModule | Unit) for module in model.modules())


def device_of(model: nn.Module) -> torch.device:
    """The device on which the model computes, which need not be where its weights are kept."""
    return next((_device(each) for each in model.modules() if isinstance(each, FSDPModule | Unit)), _first(model))


@contextmanager
def generating(model: nn.Module) -> Iterator[None]:
    """Keep the weights outside of decoder layers (embeddings, head, vision tower) here while the model writes.

    `generate` runs parts of the model by themselves, and gathering this group again for every token would take long.
    All processes must enter and leave together.
    """
    groups = [each for each in model.modules() if isinstance(each, FSDPModule)]
    outer = [each for each in groups if any(each is not inner and inner in set(each.modules()) for inner in groups)]
    if not groups:
        with measuring(model):
            yield
        return
    for group in outer:
        group.set_reshard_after_forward(False, recurse=False)
        group.unshard()
    try:
        yield
    finally:
        for group in outer:
            group.set_reshard_after_forward(True, recurse=False)
            group.reshard()


def measuring(model: nn.Module) -> AbstractContextManager[None]:
    """Within it the model or its text part may be run by itself, with several backward passes; on all processes."""
    return nullcontext() if fsdp1_model_of(model) is None else gather_per_unit(model)


def run_reduced_grad_hooks(model: nn.Module) -> None:
    """After a backward pass: where no hook of a weight is called (FSDP1), call what waits for its gradient.

    FSDP1 gives zeros to a weight that took no part, which an optimizer would decay; one process has no gradient then.
    """
    found = fsdp1_model_of(model)
    if found is None:
        return
    units = [*found.units, found.root]
    waiting = [hook for unit in units for hook in unit.waiting()]
    doubtful = [hook for hook in waiting if not hook.always]
    used = dict(
        zip(
            map(id, doubtful),
            all_reduce_counts(_any_gradient(hook) for hook in doubtful) if doubtful else [],
            strict=True,
        )
    )
    for hook in waiting:
        if used.get(id(hook), 1):
            if hook.weight.grad is None:  # no piece of it is here; others have some
                hook.weight.grad = torch.empty_like(hook.weight)
            hook.take(hook.weight)
    for unit in units:
        unit.drop_gradients()


def _any_gradient(hook: GradientHook) -> bool:
    return hook.weight.grad is not None and bool(hook.weight.grad.any())


def _device(module: FSDPModule | Unit) -> torch.device:
    kind: Any = module.compute_device if isinstance(module, Unit) else module._get_fsdp_state()._device
    return torch.device(kind)


def _first(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
