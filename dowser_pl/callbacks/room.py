"""Whether the disk has room for what a run will write, found out before anything is measured."""

import errno
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from dowser_pl.distributed.tensors import shape_of, whole_shapes
from dowser_pl.errors import FileError
from dowser_pl.planning.memory import OptimizerKind
from dowser_pl.planning.optimizers import optimizer_kind

__all__ = ["check_room"]


def check_room(trainer: Trainer, pl_module: Any, trained: int, checkpoint: str) -> None:
    """Refuse to start a run that would end on a full disk.

    Args:
        trainer: its folder, and the callbacks that write.
        pl_module: the model.
        trained: entries of the tuned matrices that will be trained.
        checkpoint: ``compact`` or ``full``.

    Raises:
        OSError: saying what would be written, and how much is free.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    kind = optimizer_kind(trainer.optimizers[0])
    with whole_shapes(pl_module.network):
        needed = _sizes(trainer, pl_module, trained, checkpoint, kind)
    folder = Path(trainer.default_root_dir).absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    disk = shutil.disk_usage(there)
    if disk.total and sum(needed.values()) > disk.free:  # some mounts report 0 of 0
        parts = ", ".join(f"{name} {size / 1e9:.3g} GB" for name, size in needed.items())
        raise FileError(
            errno.ENOSPC,
            f"the disk of {folder} has {disk.free / 1e9:.3g} GB free, expected room for what this run writes: {parts}. "
            "Fix: free some space, set --trainer.default_root_dir to a folder on another disk, or write less "
            "(--export.enabled false)",
        )


def _sizes(trainer: Trainer, pl_module: Any, trained: int, checkpoint: str, kind: OptimizerKind) -> dict[str, int]:
    """Bytes of each; a checkpoint twice, as the old one stays until the new one is whole, and is there on a resume."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    enabled = {type(each).__name__ for each in callbacks if getattr(each, "enabled", True)}
    tuned = {id(layer.weight): layer.weight for layer in pl_module.tuned_layers().values()}
    parameters = list(pl_module.network.parameters())
    model = sum(shape_of(each).numel() * each.itemsize for each in parameters)
    whole = [each for each in parameters if each.requires_grad and id(each) not in tuned]
    bits = sum(shape_of(each).numel() for each in tuned.values()) // 8
    width = next(iter(tuned.values())).itemsize
    beside = [(shape_of(each).numel(), each.itemsize) for each in whole]
    one = bits + trained * 4 + sum(entries * size for entries, size in beside)
    one += sum(kind.state_bytes(*each) for each in [(trained, 4), *beside]) if kind.known else 0
    one += model + trained * width if checkpoint == "full" else 0
    sizes = {}
    if "Export" in enabled and (pl_module.adapters is None or pl_module.adapters.mergeable):
        sizes["the exported model"] = model
    if "Checkpoints" in enabled:
        sizes["checkpoints"] = one if trainer.ckpt_path else 2 * one
    if "PatchFile" in enabled:
        sizes["the patch"] = bits + trained * width
    return sizes
