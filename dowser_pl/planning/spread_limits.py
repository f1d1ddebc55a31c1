"""What cannot be done with weights that are spread over processes: the same words before a run and in its plan."""

from typing import Any

from torch.optim import Optimizer

__all__ = ["blockwise", "no_model", "no_training"]

_INSTEAD = "use --trainer.strategy ddp, or one device"
_PER_WEIGHT = ("token_product", "weight_square")  # statistics that are as large as the weights


def no_model(lora: Any, quantization: str) -> str | None:
    """Why a model cannot be spread, to be trained or only to be run; None = it can.

    Args:
        lora: settings of adapters, or None.
        quantization: of its matrices.
    """
    if lora is not None:
        return (
            "got model.lora with weights that are spread over processes, expected null: adapters are not spread yet; "
            f"{_INSTEAD}"
        )
    if quantization != "none":
        return (
            f"got model.quantization {quantization}, expected none: packed weights are not spread over processes; "
            f"{_INSTEAD}"
        )
    return None


def no_training(method: Any, curve: bool, lora: Any, quantization: str) -> str | None:
    """Why a method cannot train a model that is spread, in any form; None = it can.

    Args:
        method: a `dowser_pl.methods.Method`.
        curve: whether a curve or a budget is asked for.
        lora: settings of adapters, or None.
        quantization: of the matrices.
    """
    name = type(method).__name__
    if method.moment != "before_fit":
        return (
            f"got dowser.method {name} with weights that are spread over processes, expected a method that decides "
            f"before training (ModelDowser, Magnitude, WandaLike, Random, HighestImportance, Full); {_INSTEAD}"
        )
    if lora is not None:
        return (
            f"got dowser.method {name} and model.lora with weights that are spread over processes, expected no "
            f"adapters, which are not spread yet; {_INSTEAD}"
        )
    large = sorted(method.needs & set(_PER_WEIGHT))
    if large:
        return (
            f"{', '.join(large)} is a float32 number per weight of the model on every process, and the weights are "
            "spread over processes because they do not fit one. Use an estimator with factors "
            f"(--dowser.method.estimator authors or paper), or {_INSTEAD}"
        )
    if curve:
        return (
            "curve and budget take updates back in whole matrices, expected neither with weights that are spread over "
            f"processes; leave them out, or {_INSTEAD}"
        )
    return no_model(lora, quantization)


def blockwise(optimizer: Optimizer) -> bool:
    """Whether its states lie in blocks, which cannot be put together from several processes (bitsandbytes)."""
    return any(each.__module__.startswith("bitsandbytes") for each in type(optimizer).__mro__)
