"""Whether the disk has room for what a run will write, found out before anything is measured."""

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer

from dowser_pl.distributed.tensors import whole_shapes
from dowser_pl.errors import FileError
from dowser_pl.masking import TunedModule
from dowser_pl.planning.disk import disk_bytes
from dowser_pl.planning.memory import Kept
from dowser_pl.planning.optimizers import optimizer_kind
from dowser_pl.planning.written import WrittenRows

__all__ = ["check_room"]


def check_room(
    trainer: Trainer,
    module: TunedModule,
    trained: int,
    checkpoint: str,
    kept: Kept = Kept(),  # noqa: B008 - immutable
    written: Sequence[WrittenRows] = (),
) -> None:
    """Refuse to start a run that would end on a full disk.

    Args:
        trainer: its folder, and the callbacks that write.
        module: the model.
        trained: entries of the tuned matrices that will be trained.
        checkpoint: `compact` or `full`.
        kept: by the method, beside each matrix.
        written: rows of the base that checkpoints hold, and what it said on them.

    Raises:
        OSError: saying what would be written, and how much is free.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    kind = optimizer_kind(trainer.optimizers[0])
    with whole_shapes(module.network):
        layers = module.tuned_layers()
        needed = disk_bytes(trainer, module.network, layers, trained, checkpoint, kind, kept, written)
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
