"""What an optimizer is built over and fed with: parameters that are here, losses and gradients that are numbers.

The freeze is not here: it is in `compact.py` and `dense.py`. The optimizer is made by `make_optimizer`, with settings
and weights that can train.

Parameters that are trained whole and sharded are given to the optimizer as what is here of them: it takes tensors that
are sharded and such that are not only apart, and entries are not. It writes into their memory, so what it writes there
is written (`LocalParameters`).
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from dowser_pl.distributed import collectives
from dowser_pl.distributed.collectives import all_reduce_counts, to_be_sent, world_size
from dowser_pl.distributed.tensors import (
    flat_shard_of,
    is_sharded,
    put_flat_shard,
    register_reduced_grad_hook,
    to_local,
)
from dowser_pl.errors import DowserError

__all__ = [
    "LocalParameters",
    "by_rate",
    "check_gradients",
    "check_images",
    "check_loss",
    "check_precision",
    "check_reached",
    "clip_by_norm",
    "leave_out_of_buckets",
    "make_optimizer",
]


def check_loss(loss: Tensor, step: int, batch: int, rows: list[str] | None) -> None:
    """Stop on a loss that is no number; waits for the device.

    Args:
        loss: () of this batch.
        step: optimizer steps so far.
        batch: index of the batch in its epoch.
        rows: ids of its rows, if the data module gives them.

    Raises:
        DowserError: naming the step and the rows.
    """
    if not bool(torch.isfinite(loss)):
        raise DowserError(
            f"the loss is {loss.item()} at step {step} (batch {batch}, rows {rows}); nothing of this step was applied "
            "and the last checkpoint is intact. Lower --model.optimizer.lr, check those rows, or train in bfloat16 "
            "instead of float16"
        )


def check_gradients(weights: Iterable[Tensor], step: int, in_parts: bool = False) -> None:
    """Stop on a gradient that is infinite or no number, which a finite loss can have; one pass over them.

    A sum of squares is not finite where an entry is not, and on a CPU costs a seventh of the largest entry; squares can
    also overflow where all are finite, and then that is asked.

    Args:
        weights: that may have a gradient.
        step: optimizer steps so far.
        in_parts: whether processes hold different parts of them; then all must call it, and all stop.

    Raises:
        DowserError: naming the step.
    """
    gradients = [to_local(weight.grad) for weight in weights if weight.grad is not None]
    filled = [each for each in gradients if each.numel()]
    odd = not any(bool(torch.isfinite(torch.nn.utils.get_total_norm(filled, order))) for order in (2.0, math.inf))
    if any(all_reduce_counts([odd])) if in_parts else odd:
        raise DowserError(
            f"a gradient is not finite at step {step}; nothing of this step was applied and the last checkpoint is "
            "intact. Lower --model.optimizer.lr, or train in bfloat16 or float32"
        )


def check_reached(trained: Collection[Tensor]) -> None:
    """Stop where a backward pass has reached nothing of what is trained, before a step that does nothing.

    Args:
        trained: all that an optimizer is about to step of it.

    Raises:
        DowserError: if none of it has a gradient.
    """
    if trained and all(each.grad is None for each in trained):
        raise DowserError(
            f"no gradient reached any of {len(trained)} matrices, expected some: nothing would be trained. Fix: "
            "compute the loss with the very model that is protected, leave requires_grad of its weights alone, and "
            "gradient checkpointing at use_reentrant=False"
        )


def by_rate(parameters: list[nn.Parameter], rates: Mapping[int, float]) -> list[Any]:
    """What an optimizer takes: the parameters, or groups of them where some have a learning rate of their own.

    Args:
        parameters: what is to be trained.
        rates: id of a parameter -> its learning rate; all others have the optimizer's, and are the first group.
    """
    if not rates:
        return list(parameters)
    groups: list[Any] = [{"params": [each for each in parameters if id(each) not in rates]}]
    for rate in dict.fromkeys(rates.values()):
        groups.append({"params": [each for each in parameters if rates.get(id(each)) == rate], "lr": rate})
    return groups


def make_optimizer(make: Callable[[list[Any]], Optimizer], parameters: list[Any]) -> Optimizer:
    """The optimizer of a run, whose settings are numbers that can train.

    Args:
        make: builds it over parameters.
        parameters: what is to be trained, or groups of it.

    Raises:
        DowserError: if its class refuses its settings, or one of them is no finite number, or nothing would be learnt.
    """
    try:
        optimizer = make(parameters)
    except (ValueError, TypeError) as error:
        raise DowserError(
            f"the optimizer refuses its settings: {error}. Fix: correct them under --model.optimizer"
        ) from error
    for group in optimizer.param_groups:
        settings = {name: value for name, value in group.items() if isinstance(value, (int, float))}
        odd = {name: value for name, value in settings.items() if not math.isfinite(value)}
        odd |= {"lr": settings["lr"]} if settings.get("lr", 1.0) <= 0 else {}
        if odd:
            raise DowserError(
                f"got {odd} for {type(optimizer).__name__}, expected finite numbers and a learning rate above 0. Fix: "
                "correct them under --model.optimizer"
            )
    return optimizer


def check_images(here: bool) -> None:
    """Parts that only images train get a gradient on all processes or on none; all must call it.

    Args:
        here: whether there is an image in this process' batch.

    Raises:
        DowserError: where gradients of some processes would be averaged with nothing, or with something else.
    """
    number = sum(all_reduce_counts([here]))
    if number not in (0, world_size()):
        raise DowserError(
            f"got images on {number} of {world_size()} processes and a projector or vision tower that is trained and "
            "sharded over them, expected images on all or on none: give every row an image, leave these parts out of "
            "model.also_train, or use --trainer.strategy ddp"
        )


def check_precision(weights: Iterable[Tensor]) -> None:
    """Refuse to train in float16 weights.

    Raises:
        DowserError: saying what to set instead.
    """
    if any(weight.dtype == torch.float16 for weight in weights):
        raise DowserError(
            "this would train float16 weights, in which small updates are lost and gradients overflow; set "
            "--trainer.precision bf16-true, or --model.dtype float32 with --trainer.precision 16-mixed"
        )


@torch.no_grad()
def clip_by_norm(parameters: Sequence[nn.Parameter], max_norm: float) -> None:
    """`torch.nn.utils.clip_grad_norm_` for parameters of which each process holds a part; all must call it.

    The norms of all parts are put beside each other before they are added, so that one process alone gets what PyTorch
    computes, bit for bit.

    Args:
        parameters: in the same order on every process.
        max_norm: over all parts of all parameters.
    """
    gradients = {number: to_local(each.grad) for number, each in enumerate(parameters) if each.grad is not None}
    mine = [torch.linalg.vector_norm(each.float()) for each in gradients.values()]
    norms = torch.zeros(len(parameters), collectives.world_size())
    norms[list(gradients), collectives.rank()] = torch.stack(mine).cpu() if mine else torch.zeros(0)
    total = torch.linalg.vector_norm(collectives.all_reduce(to_be_sent(norms))).cpu()
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients.values():
        gradient.mul_(factor.to(gradient.device))


def leave_out_of_buckets(module: nn.Module, prefix: str = "") -> None:
    """Have DistributedDataParallel ignore all that is trained, but for one small tensor.

    Args:
        module: that it will wrap.
        prefix: of the names of what it shall ignore; what else is trained is sent to the other processes as ever.

    It allocates buckets as large as all gradients when it wraps a module, and refuses one without any. What it ignores
    it does not send to the other processes either: they must have loaded the same weights. To be called before.
    """
    trained = sorted((each.numel(), name) for name, each in module.named_parameters() if each.requires_grad)
    trained = [(size, name) for size, name in trained if name.startswith(prefix)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, [name for _, name in trained[1:]])


class LocalParameters:
    """One for each parameter that was asked for; gradients go there as soon as they are averaged."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """What an optimizer is to train: itself, where it is not sharded."""
        if not is_sharded(parameter):
            return parameter
        if id(parameter) not in self._known:
            here = nn.Parameter(to_local(parameter))

            def take(whole: Any) -> None:
                gradient, whole.grad = to_local(whole.grad).view_as(here), None
                here.grad = gradient if here.grad is None else here.grad + gradient

            put_flat_shard(here, flat_shard_of(parameter))
            register_reduced_grad_hook(parameter, take, always=False)
            self._known[id(parameter)] = parameter, here
        return self._known[id(parameter)][1]
