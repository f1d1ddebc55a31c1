"""Numbers that are not finite stop the training before they reach the weights and the next checkpoint."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dowser_pl.distributed.collectives import world_size
from dowser_pl.distributed.tensors import added, local

__all__ = ["check_gradients", "check_images", "check_loss", "check_precision", "make_optimizer"]


def check_loss(loss: Tensor, step: int, batch: int, rows: list[str] | None) -> None:
    """Stop on a loss that is no number; waits for the device.

    Args:
        loss: () of this batch.
        step: optimizer steps so far.
        batch: index of the batch in its epoch.
        rows: ids of its rows, if the data module gives them.

    Raises:
        ValueError: naming the step and the rows.
    """
    if not bool(torch.isfinite(loss)):
        raise ValueError(
            f"the loss is {loss.item()} at step {step} (batch {batch}, rows {rows}); nothing of this step was applied "
            "and the last checkpoint is intact. Lower --model.optimizer.lr, check those rows, or train in bfloat16 "
            "instead of float16"
        )


def check_gradients(weights: Iterable[Tensor], step: int, together: bool = False) -> None:
    """Stop on a gradient that is infinite or no number, which a finite loss can have; one pass over them.

    Args:
        weights: that may have a gradient.
        step: optimizer steps so far.
        together: whether processes hold different parts of them; then all must call it, and all stop.

    Raises:
        ValueError: naming the step.
    """
    gradients = [local(weight.grad) for weight in weights if weight.grad is not None]
    total = torch.nn.utils.get_total_norm([each for each in gradients if each.numel()], math.inf)
    odd = not bool(torch.isfinite(total))
    if any(added([odd])) if together else odd:
        raise ValueError(
            f"a gradient is not finite at step {step}; nothing of this step was applied and the last checkpoint is "
            "intact. Lower --model.optimizer.lr, or train in bfloat16 or float32"
        )


def make_optimizer(make: Callable[[list[nn.Parameter]], Optimizer], parameters: list[nn.Parameter]) -> Optimizer:
    """The optimizer of a run, whose settings are numbers that can train.

    Args:
        make: builds it over parameters.
        parameters: what is to be trained.

    Raises:
        ValueError: if its class refuses its settings, or one of them is no finite number, or nothing would be learnt.
    """
    try:
        optimizer = make(parameters)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the optimizer refuses its settings: {error}. Fix: correct them under --model.optimizer"
        ) from error
    for group in optimizer.param_groups:
        settings = {name: value for name, value in group.items() if isinstance(value, (int, float))}
        odd = {name: value for name, value in settings.items() if not math.isfinite(value)}
        odd |= {"lr": settings["lr"]} if settings.get("lr", 1.0) <= 0 else {}
        if odd:
            raise ValueError(
                f"got {odd} for {type(optimizer).__name__}, expected finite numbers and a learning rate above 0. Fix: "
                "correct them under --model.optimizer"
            )
    return optimizer


def check_images(here: bool) -> None:
    """Parts that only images train get a gradient on all processes or on none; all must call it.

    Args:
        here: whether there is an image in this process' batch.

    Raises:
        ValueError: where gradients of some processes would be averaged with nothing, or with something else.
    """
    number = sum(added([here]))
    if number not in (0, world_size()):
        raise ValueError(
            f"got images on {number} of {world_size()} processes and a projector or vision tower that is trained and "
            "spread over them, expected images on all or on none: give every row an image, leave these parts out of "
            "model.also_train, or use --trainer.strategy ddp"
        )


def check_precision(weights: Iterable[Tensor]) -> None:
    """Refuse to train in float16 weights.

    Raises:
        ValueError: saying what to set instead.
    """
    if any(weight.dtype == torch.float16 for weight in weights):
        raise ValueError(
            "this would train float16 weights, in which small updates are lost and gradients overflow; set "
            "--trainer.precision bf16-true, or --model.dtype float32 with --trainer.precision 16-mixed"
        )
