"""The count of epochs in checkpoints, put right."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["EpochProgress"]


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
