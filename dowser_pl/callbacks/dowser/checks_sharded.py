"""What cannot be done yet with weights that are spread over processes is refused before any is loaded."""

from typing import Any

from lightning.pytorch import Trainer

from dowser_pl.callbacks.curve import find_curve
from dowser_pl.methods import Method
from dowser_pl.strategies.limits import no_model, no_training

__all__ = ["check_sharded"]


def check_sharded(trainer: Trainer, method: Method, update: str, checkpoint: str, pl_module: Any, stage: str) -> None:
    """Refuse what would train or run the wrong thing, or wait for ever.

    Args:
        trainer: its strategy says whether weights are spread, its precision how gradients are scaled.
        method: that trains, in stage ``fit``.
        update: how it does.
        checkpoint: what it keeps.
        pl_module: its model is not loaded yet.
        stage: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        ValueError: saying what to set instead.
    """
    if not hasattr(trainer.strategy, "shard"):
        return
    quantization = pl_module.quantization
    if stage == "fit":
        curve = find_curve(trainer).active
        refused = no_training(method, curve, checkpoint, quantization) or _other_form(trainer, update)
    else:
        refused = no_model(quantization)
    if refused:
        raise ValueError(refused)


def _other_form(trainer: Trainer, update: str) -> str | None:
    if update != "compact":
        return (
            f"got update {update!r} with weights that are spread over processes, expected compact: entries are trained "
            "where they lie. Set --dowser.update compact, or use --trainer.strategy ddp, or one device"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return (
            f"got trainer.precision {trainer.precision}, expected 32-true, bf16-true or bf16-mixed: a gradient scaler "
            "would skip a step on some processes and not on others"
        )
    return None
