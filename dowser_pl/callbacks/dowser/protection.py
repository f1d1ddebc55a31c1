"""Which form of training a method gets: by when it decides, and by how entries are to be kept.

Under DDP gradients are averaged here, of the optimizer's parameters: DistributedDataParallel would average those of
each matrix after the entries were gathered from it, too late. It is a tenth of the traffic at update ratio 0.1.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.distributed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from dowser_pl.callbacks.dowser.masks import MaskBuilder
from dowser_pl.callbacks.dowser.starts import trained_parts
from dowser_pl.distributed import collectives
from dowser_pl.distributed.tensors import is_sharded, shape_of, whole_shapes
from dowser_pl.functional.masks import num_trainable
from dowser_pl.masking import (
    BaseModel,
    CompactEntries,
    DenseEntries,
    HeldEntries,
    ProjectedEntries,
    Protection,
    ShardedEntries,
    ShardedProjectedEntries,
    ShardedSoftEntries,
    SoftEntries,
    TunedModule,
)
from dowser_pl.masking.base import State
from dowser_pl.masking.sharded import entries_as_shares
from dowser_pl.methods import BeforeFit, EachStep, Lora, Method
from dowser_pl.planning import lines, plan_of
from dowser_pl.planning.memory import Form, Kept
from dowser_pl.planning.written import WrittenRows
from dowser_pl.strategies.sharded import ShardedStrategy

__all__ = [
    "Content",
    "Form",
    "announce_plan",
    "leave_base_out",
    "num_trained",
    "protect",
    "protect_again",
    "reduce_gradients",
    "saved_entries",
    "stop_reducing",
]


Content = Literal["compact", "full"]
_FORMS: dict[str, type[Protection]] = {"compact": CompactEntries, "dense": DenseEntries}


def protect(method: Method, update: Form, weights: Mapping[str, nn.Parameter], builder: MaskBuilder) -> Protection:
    """A model that is about to be trained, its weights being the base.

    Args:
        method: decides.
        update: `compact` or `dense`.
        weights: run-time name -> (O, I) parameter.
        builder: measures what the method needs.
    """
    if isinstance(method, EachStep):
        return _said(method, _soft(weights)(weights, method, builder.priors(method), builder.directions()))
    if isinstance(method, Lora) and method.projects:
        return _said(method, _projected(weights)(weights, builder.directions()))
    if isinstance(method, Lora) and method.start is not None:
        trained = trained_parts(weights, method.start)  # refused before anything is measured
        return _said(method, HeldEntries(weights, builder.starts(), trained))
    return _said(method, _form(update, weights)(weights, builder.masks()))


def protect_again(method: Method, update: Form, weights: Mapping[str, nn.Parameter], state: State) -> Protection:
    """A model that was loaded from a checkpoint, its weights being tuned; `state` is what the checkpoint holds."""
    if isinstance(method, EachStep):
        return _said(method, _soft(weights).resumed(weights, method, state))
    if isinstance(method, Lora) and method.projects:
        return _said(method, _projected(weights).resumed(weights, state))
    if isinstance(method, Lora) and method.start is not None:
        return _said(method, HeldEntries.resumed(weights, trained_parts(weights, method.start), state))
    return _said(method, _form(update, weights).from_state(weights, state))


def _form(update: Form, weights: Mapping[str, nn.Parameter]) -> type[Protection]:
    return ShardedEntries if any(map(is_sharded, weights.values())) else _FORMS[update]


def _soft(weights: Mapping[str, nn.Parameter]) -> type[SoftEntries]:
    return ShardedSoftEntries if any(map(is_sharded, weights.values())) else SoftEntries


def _projected(weights: Mapping[str, nn.Parameter]) -> type[ProjectedEntries]:
    return ShardedProjectedEntries if any(map(is_sharded, weights.values())) else ProjectedEntries


def saved_entries(entries: Protection, sharded: bool, checkpoint: Content) -> Mapping[str, Any]:
    """What a checkpoint is to hold of entries: all of it on the first process, or of each its own."""
    base = checkpoint == "full"  # otherwise the model that is loaded gives it back
    return entries_as_shares(entries, base) if sharded else entries.state_dict(base)


def leave_base_out(checkpoint: dict[str, Any], base: BaseModel, owner: str) -> None:
    """Leave the base out of a checkpoint, where it is written.

    Raises:
        RuntimeError: if the state that gives it back is not there; nothing is left out then.
    """
    state = checkpoint["callbacks"].get(owner)
    if not state and collectives.rank() == 0:
        raise RuntimeError(f"{owner} has no state in the checkpoint, expected masks and values; this is a bug")
    checkpoint["state_dict"] = base.left_out(checkpoint["state_dict"])
    if not state:  # the first process writes it
        return
    state["entries"] = {n: {k: v for k, v in each.items() if k != "base"} for n, each in state["entries"].items()}
    checkpoint["without_base"] = owner


def num_trained(layers: Mapping[str, nn.Linear], method: Method) -> int:
    """How many entries of the tuned matrices training will move: all, where the method decides later than before it."""
    ratio = method.update_ratio if isinstance(method, BeforeFit) and method.update_ratio is not None else 1.0
    return sum(num_trainable(ratio, shape_of(layer.weight).numel()) for layer in layers.values())


def announce_plan(
    trainer: Trainer, module: TunedModule, number: int, update: Form, kept: Kept, written: Sequence[WrittenRows]
) -> None:
    """Say what training will take in memory, before any of it is taken.

    Args:
        trainer: its precision, devices and data.
        module: the model.
        number: of entries that training will move.
        update: `compact` or `dense`.
        kept: by the method, beside each matrix.
        written: rows of the base that are going to be kept.
    """
    layers = module.tuned_layers()
    with whole_shapes(module.network):
        tuned = [layer.weight for layer in layers.values()]
        plan = plan_of(trainer, module.network, tuned, number, update, trainer.optimizers[0], kept, written)
    rank_zero_info("\n".join(lines(plan)))


def _said(method: Method, entries: Protection) -> Protection:
    """Say how much of the model training may move."""
    total = sum(shape_of(weight).numel() for weight in entries.weights.values())
    rank_zero_info(
        f"{type(method).__name__}: {entries.num_trainable:,} of {total:,} entries in {len(entries.weights)} matrices "
        f"are trainable{f'; learning rate: {method.rate_hint}' if method.rate_hint else ''}"
    )
    return entries


def stop_reducing(trainer: Trainer) -> None:
    """Let no wrapper average gradients by itself."""
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy.model.require_backward_grad_sync = False  # type: ignore[union-attr]


def reduce_gradients(trainer: Trainer) -> None:
    """Average the gradients of all processes, once those of an optimizer step are complete.

    Strategies that shard weights over the processes have done so already.
    """
    averaged = trainer.world_size == 1 or isinstance(trainer.strategy, ShardedStrategy)
    if averaged or trainer.fit_loop._should_accumulate():
        return
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    used = torch.tensor([parameter.grad is not None for parameter in parameters], device=parameters[0].device).int()
    torch.distributed.all_reduce(used)
    for parameter, anywhere in zip(parameters, used.tolist(), strict=True):
        if not anywhere:  # as in one process: no gradient, no step
            continue
        if parameter.grad is None:  # its part of the model had nothing to do in this process' batch
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= trainer.world_size
