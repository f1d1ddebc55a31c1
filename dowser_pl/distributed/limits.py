"""What cannot be done with weights that are sharded over processes: the same words before a run and in its plan."""

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

__all__ = ["no_model", "no_optimizer", "no_reading", "no_training"]

_INSTEAD = "use --trainer.strategy ddp, or one device"
_PER_WEIGHT = ("token_product", "weight_square")  # statistics that are as large as the weights


def no_model(quantization: str) -> str | None:
    """Why a model cannot be sharded, to be trained or only to be run; None = it can.

    Args:
        quantization: of its matrices.
    """
    if quantization == "none":
        return None
    return f"got model.quantization {quantization}, expected none: packed weights are not sharded; {_INSTEAD}"


def no_reading(asked: Sequence[str]) -> str | None:
    """Why the base cannot read the training batches; None = it can, or nothing asks for that.

    Args:
        asked: options of `dowser` for which it reads them.
    """
    if not asked:
        return None
    return (
        f"got {' and '.join(f'dowser.{name}' for name in asked)} with weights that are sharded over processes, "
        f"expected whole ones, which hold the base for a forward pass; {_INSTEAD}, or set "
        f"{' and '.join(f'--dowser.{name} null' for name in asked)}"
    )


def no_training(method: Any, after_fit: bool, curve: bool, checkpoint: str) -> str | None:
    """Why a method cannot train a model that is sharded, in any form; None = it can.

    Args:
        method: a `dowser_pl.methods.Method`.
        after_fit: whether it decides once training has ended.
        curve: whether a curve or a budget is asked for.
        checkpoint: `compact` or `full`.
    """
    large = sorted(method.needs & set(_PER_WEIGHT))
    if large:
        return (
            f"{', '.join(large)} is a float32 number per weight of the model on every process, and the weights are "
            "sharded over processes because they do not fit one. Use an estimator with factors "
            f"(--dowser.method.estimator authors or paper), or {_INSTEAD}"
        )
    if (preserve := getattr(method, "preserve", None)) is not None:
        return (
            f"got preserve {preserve} with weights that are sharded over processes, expected whole ones: directions of "
            f"outputs are taken out of all rows at once; {_INSTEAD}"
        )
    if getattr(method, "start", None) is not None:
        return (
            "got start with weights that are sharded over processes, expected whole ones: a half of each adapter is "
            f"made of its whole matrix, and held; {_INSTEAD}"
        )
    if checkpoint == "full" and (curve or after_fit):
        asked = "curve and budget change" if curve else f"dowser.method {type(method).__name__} changes"
        return (
            f"got dowser.checkpoint full, and {asked} the model once training has ended, where its trained weights are "
            f"no longer at hand as a whole; set --dowser.checkpoint compact, or {_INSTEAD}"
        )
    return None


def no_optimizer(optimizer: Optimizer) -> str | None:
    """Why an optimizer cannot train what is sharded; None = it can."""
    if not any(each.__module__.startswith("bitsandbytes") for each in type(optimizer).__mro__):
        return None
    return (
        f"{type(optimizer).__name__} keeps its states in blocks, which cannot be put together from several processes; "
        "use torch.optim.AdamW, whose states take a share on each of them"
    )
