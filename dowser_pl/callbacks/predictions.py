"""Answers as a file, for `predict`."""

import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from dowser_pl.distributed import collectives
from dowser_pl.files.atomic import write_atomically
from dowser_pl.masking import reported_module

__all__ = ["Predictions", "in_turns"]

Row = dict[str, Any]


class Predictions(Callback):
    """Writes `<run>/predictions.jsonl`: `task, id, question, images, prediction, references` of each question.

    Where there are references, also the `score`. In the order of tasks and questions, however many processes share
    them.
    """

    def __init__(self) -> None:
        self._rows: dict[int, list[Row]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Whether the module can score what it answers."""
        if stage == "predict":
            reported_module(pl_module, self)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the answers of an earlier call."""
        self._rows = defaultdict(list)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[Row],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the answers of one batch."""
        self._rows[dataloader_idx].extend(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the answers of all processes at once.

        Raises:
            OSError: on every process, if the first cannot write the file.
        """
        module, path = reported_module(pl_module, self), Path(trainer.default_root_dir) / "predictions.jsonl"
        shares = collectives.all_gather_numbered(lambda: {collectives.rank(): dict(self._rows)})
        tasks = sorted(set(chain(*shares)))
        rows = [row for task in tasks for row in in_turns([share.get(task, []) for share in shares])]

        def write() -> None:
            module.score_rows(rows)
            write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

        collectives.from_rank_zero(write)
        rank_zero_info(f"{len(rows)} answers written to {path}")


def in_turns(shares: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of one task again in order, of which each process took every n-th."""
    return [row for turn in zip_longest(*shares) for row in turn if row is not None]
