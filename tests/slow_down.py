"""A callback that stops a run at a known step, so that a test can end it there."""

import time
from pathlib import Path

from lightning.pytorch import Callback


class SlowDown(Callback):
    """Waits for a signal after `pause_after` optimizer steps, once the checkpoint of that step is written."""

    def __init__(self, pause_after: int, seconds: float = 300) -> None:
        self.pause_after = pause_after
        self.seconds = seconds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.pause_after:
            (Path(trainer.default_root_dir) / "paused").touch()
            time.sleep(self.seconds)
