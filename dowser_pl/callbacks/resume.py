"""What checkpoints need beside Lightning's own to go on as the unbroken run would: random states, epochs."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["EpochProgress", "RandomState"]


class RandomState(Callback):
    """Saves the global random states of the first rank with each checkpoint and sets them when training starts."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """States of Python, NumPy, torch and every CUDA device."""
        version, keys, gauss = random.getstate()
        name, words, position, has_gauss, cached = np.random.get_state()
        return {
            "python": (version, list(keys), gauss),
            "numpy": (name, torch.from_numpy(np.asarray(words).astype(np.int64)), position, has_gauss, cached),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts: evaluation before it must not use them up."""
        self._loaded = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the random states that were loaded."""
        if self._loaded is None:
            return
        version, keys, gauss = self._loaded["python"]
        random.setstate((version, tuple(keys), gauss))
        name, words, position, has_gauss, cached = self._loaded["numpy"]
        np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(self._loaded["torch"])
        if len(self._loaded["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(self._loaded["cuda"])
        self._loaded = None


class EpochProgress(Callback):
    """Has a run that was resumed at the last step of an epoch count the next one as begun.

    Lightning 2.6 does not, and takes a checkpoint that is written in the middle of that epoch for one of its end: a run
    that goes on from there would begin the epoch again.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """An epoch whose batches are trained on has begun."""
        progress = trainer.fit_loop.epoch_progress
        current: Any = progress.current
        if current.started == current.completed:
            progress.increment_ready()
            progress.increment_started()
