"""Checkpoints of a run: one ``last.ckpt`` that is whole at every moment."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from dowser_pl.files import atomic_path

__all__ = ["AtomicCheckpointIO", "Checkpoints"]


class Checkpoints(ModelCheckpoint):
    """Saves ``last.ckpt`` as training goes; ``fit --ckpt_path last`` goes on from the newest one, bit for bit.

    Args:
        folder: where they lie; ``<run>/checkpoints``.
        every_n_steps: optimizer steps between checkpoints; None = at the end of every epoch.
        keep_all: keep one more file per checkpoint instead of the last one only.
    """

    def __init__(self, folder: str, every_n_steps: int | None = None, keep_all: bool = False) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"checkpoint.every_n_steps must be at least 1, or null for epochs; got {every_n_steps}")
        super().__init__(
            dirpath=folder,
            filename="{epoch}-{step}",
            save_last=True,
            save_top_k=-1 if keep_all else 0,
            every_n_train_steps=every_n_steps,
        )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Streams a checkpoint to a temporary neighbour and renames it: a kill or a full disk leaves the old one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` as ``path``; remote paths are left to Lightning.

        Raises:
            OSError: if the disk is full; the previous checkpoint is untouched.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)
