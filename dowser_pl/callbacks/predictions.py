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
from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import file_name, write_atomically
from dowser_pl.masking import reported_module

__all__ = ["Predictions", "in_turns"]

Row = dict[str, Any]


class Predictions(Callback):
    """Writes `<run>/predictions.jsonl`: `task, id, question, images, prediction, references` of each question.

    Where there are references, also the `score`. In the order of tasks and questions, however many processes share
    them. With `predict --format server`, also `<run>/server/<task>` as the evaluation server of each task takes it.
    """

    def __init__(self) -> None:
        self._rows: dict[int, list[Row]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Whether the module can score what it answers."""
        if stage == "predict":
            reported_module(pl_module, self)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the answers of an earlier call.

        Raises:
            DowserError: if answers are for servers, and a task has none, or would not be answered as it wants.
        """
        self._rows = defaultdict(list)
        if _for_servers(trainer):
            tasks = reported_module(pl_module, self).tasks()
            if without := [task.name for task in tasks if getattr(task, "server", None) is None]:
                raise DowserError(
                    f"--format server: no evaluation server takes answers to {', '.join(without)}. Fix: keep the "
                    "benchmarks GQA, VQAv2, OK-VQA, VizWiz, TextVQA and MMBench alone, or leave out --format"
                )
            for task in tasks:
                task.server.check(len(task.questions))

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
        module, run = reported_module(pl_module, self), Path(trainer.default_root_dir)
        path = run / "predictions.jsonl"
        shares = collectives.all_gather_numbered(lambda: {collectives.rank(): dict(self._rows)})
        tasks = sorted(set(chain(*shares)))
        rows = [row for task in tasks for row in in_turns([share.get(task, []) for share in shares])]

        def write() -> None:
            module.score_rows(rows)
            write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            for task in module.tasks() if _for_servers(trainer) else ():
                content = task.server.content([row for row in rows if row["task"] == task.name])
                write_atomically(run / "server" / f"{file_name(task.name)}{task.server.ending}", content)

        collectives.from_rank_zero(write)
        also = f" and, as servers take them, to {run / 'server'}" if _for_servers(trainer) else ""
        rank_zero_info(f"{len(rows)} answers written to {path}{also}")


def _for_servers(trainer: Trainer) -> bool:
    return getattr(trainer, "answers_for", "rows") == "server"


def in_turns(shares: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of one task again in order, of which each process took every n-th."""
    return [row for turn in zip_longest(*shares) for row in turn if row is not None]
