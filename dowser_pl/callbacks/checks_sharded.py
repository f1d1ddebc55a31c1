"""What cannot be done yet with weights that are spread over processes is refused before any is loaded."""

from typing import Any

from lightning.pytorch import Trainer

from dowser_pl.callbacks.curve import find_curve
from dowser_pl.methods import Lora, Method

__all__ = ["check_sharded"]


def check_sharded(trainer: Trainer, method: Method, update: str, pl_module: Any) -> None:
    """Refuse what would train the wrong thing, or wait for ever.

    Raises:
        ValueError: saying what to set instead.
    """
    if not hasattr(trainer.strategy, "shard"):
        return
    name, instead = type(method).__name__, "use --trainer.strategy ddp, or one device"
    if method.moment != "before_fit" or isinstance(method, Lora) or pl_module.lora is not None:
        raise ValueError(
            f"got dowser.method {name} with weights that are spread over processes, expected a method that decides "
            f"before training (ModelDowser, Magnitude, WandaLike, Random, HighestImportance, Full); {instead}"
        )
    if update != "compact":
        raise ValueError(
            f"got update {update!r} with weights that are spread over processes, expected compact: entries are trained "
            f"where they lie. Set --dowser.update compact, or {instead}"
        )
    if pl_module.quantization != "none":
        raise ValueError(
            f"got model.quantization {pl_module.quantization}, expected none: packed weights are not spread over "
            f"processes; {instead}"
        )
    if find_curve(trainer).active:
        raise ValueError(
            "curve and budget take updates back in whole matrices, expected neither with weights that are spread over "
            f"processes; leave them out, or {instead}"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ValueError(
            f"got trainer.precision {trainer.precision}, expected 32-true, bf16-true or bf16-mixed: a gradient scaler "
            "would skip a step on some processes and not on others"
        )
