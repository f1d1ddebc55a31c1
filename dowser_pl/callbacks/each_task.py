"""An evaluation whose every task is kept as soon as it is answered."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from dowser_pl.callbacks.answers import answers_of
from dowser_pl.distributed import collectives
from dowser_pl.errors import DowserError
from dowser_pl.masking import reported_module
from dowser_pl.metrics import build_metric, metric_label, score_here, scoring
from dowser_pl.reporting.answers import Row
from dowser_pl.reporting.evaluation import Answered, Asked, Evaluation
from dowser_pl.reporting.evaluation_table import evaluation_text
from dowser_pl.strategies.sharded import ShardedStrategy

__all__ = ["EachTask", "ScoreTable", "as_answered"]

Keep = Callable[[str, Answered], None]


def as_answered(task: Any, rows: list[Row], seconds: float) -> Answered:
    """The score of a task with the answers that lead to it.

    Args:
        task: as data modules have it.
        rows: of all its questions, each with its `prediction` and `references`.
        seconds: that answering took.
    """
    predictions, references = [row["prediction"] for row in rows], [row["references"] for row in rows]
    score = score_here(build_metric(task.metric), predictions, references)
    protocol = {**scoring(task.metric, task.max_new_tokens), **getattr(task, "protocol", {})}
    asked = Asked(task.role, metric_label(task.metric), protocol)
    return Answered(asked, round(score, 6), rows, round(seconds, 3))


class EachTask(Callback):
    """Hands on the score and the answers of a task right behind its last batch; tasks are asked one after the other.

    Args:
        keep: gets the name of the task and its answers; on the first process.
        put_on: gets the Hugging Face model, on its device; what it gives is entered for the time of the evaluation.
            None = the model as it is.
    """

    def __init__(self, keep: Keep, put_on: Callable[[Any], AbstractContextManager[None]] | None = None) -> None:
        self.keep = keep
        self.put_on = put_on
        self._entered = ExitStack()
        self._started = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put on what is to be measured, and start the clock.

        Raises:
            DowserError: no process has the whole matrices that it is put on.
        """
        if self.put_on is not None:
            if isinstance(trainer.strategy, ShardedStrategy):
                raise DowserError(
                    f"patches and adapters are put on whole models, got {type(trainer.strategy).__name__}. "
                    "Fix: --trainer.strategy ddp, or evaluate the exported folder"
                )
            self._entered.enter_context(self.put_on(pl_module.network))
        self._started = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Once it was the last batch of a task, score that."""
        testing = trainer.state.fn == TrainerFn.TESTING
        counts = trainer.num_test_batches if testing else trainer.num_val_batches
        if batch_idx + 1 == counts[dataloader_idx]:
            self._score(pl_module, dataloader_idx)

    def _score(self, pl_module: LightningModule, dataloader_idx: int) -> None:
        module = reported_module(pl_module, self)
        task = module.tasks()[dataloader_idx]
        answered = as_answered(task, answers_of(module, task), time.monotonic() - self._started)
        self._started = time.monotonic()
        collectives.from_rank_zero(lambda: self.keep(task.name, answered))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take it off again."""
        self._entered.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Likewise, so that the model is its base again."""
        self._entered.close()


class ScoreTable(EachTask):
    """Prints the table of `evaluate` behind `validate` and `test`, unless they are to be quiet (`verbose=False`)."""

    def __init__(self) -> None:
        self._answered: dict[str, Answered] = {}
        super().__init__(self._answered.__setitem__)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Nothing in training, which has a report."""
        loops = {TrainerFn.VALIDATING: trainer.validate_loop, TrainerFn.TESTING: trainer.test_loop}
        if trainer.state.fn in loops and loops[trainer.state.fn].verbose:
            super().on_validation_batch_end(trainer, pl_module, *batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print, on the first process."""
        if self._answered:
            model = reported_module(pl_module, self).path
            sys.stdout.write(f"\n{evaluation_text(Evaluation.of({model: self._answered}))}\n\n")
            self._answered.clear()

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Once it was the last batch of a task of `test`, score that."""
        self.on_validation_batch_end(trainer, pl_module, *batch)

    on_test_start = EachTask.on_validation_start
    on_test_end = on_validation_end
