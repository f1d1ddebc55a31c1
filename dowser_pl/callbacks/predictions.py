"""Answers as a file, for ``predict``."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info

from dowser_pl.files import write_atomically

__all__ = ["Predictions"]


class Predictions(Callback):
    """Writes ``<run>/predictions.jsonl``: one row per question with ``task, id, prediction, references``."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Refuse several processes: each would answer its share and write it over the others'."""
        if stage == "predict" and trainer.world_size > 1:
            raise ValueError(f"predict runs in one process, got {trainer.world_size}: set --trainer.devices 1")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: list[dict[str, Any]],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the answers of one batch."""
        self._rows.extend(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write all answers at once."""
        path = Path(trainer.default_root_dir) / "predictions.jsonl"
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows))
        rank_zero_info(f"{len(self._rows)} answers written to {path}")
