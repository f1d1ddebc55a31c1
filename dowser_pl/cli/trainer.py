"""Lightning's Trainer with one more verb."""

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.plugins.environments import SLURMEnvironment

from dowser_pl.errors import DowserError
from dowser_pl.files.locking import alone
from dowser_pl.files.run_folder import refuse_another_run
from dowser_pl.planning.memory import Placement
from dowser_pl.planning.verb import plan_run, show, write

__all__ = ["DowserTrainer"]


_LONGEST, _POINTS = 50, 20  # steps between two points of a curve (Lightning's), and how many points a run has at least


class _FinishingFitLoop(_FitLoop):
    """Ends training properly: also where a checkpoint of the last step leaves no step to take, or in mid epoch.

    Lightning returns at once in the first case, and a run killed in its last evaluation would never write its report.
    In the second one (`max_steps`, `max_time`, an early stop) it counts the epoch as done, and a run that goes on
    from there would never see the rows that were left.
    """

    @_FitLoop.restarting.setter
    def restarting(self, restarting: bool) -> None:
        """Whether a checkpoint was loaded that was written in the middle of an epoch.

        With `max_steps` Lightning says so of a finished one as well, and counts it a second time.
        """
        current: Any = self.epoch_progress.current
        unfinished = current.processed != current.ready or current.processed != current.started
        _Loop.restarting.fset(self, restarting and unfinished)  # type: ignore[attr-defined]

    @property
    def skip(self) -> bool:
        """Whether not even the end of training is left to do."""
        return super().skip and (self.trainer.limit_train_batches == 0 or self.trainer.ckpt_path is None)

    @property
    def _can_stop_early(self) -> bool:
        """Not between accumulated batches: no run could go on from there, so a limit of time waits for the step."""
        return super()._can_stop_early and not self._should_accumulate()

    def on_advance_end(self) -> None:
        """End the epoch, if all of its batches were taken."""
        stops = self.trainer.should_stop or self.epoch_loop._is_training_done
        if self.epoch_loop._num_ready_batches_reached() or not stops:
            super().on_advance_end()
        else:
            self.trainer._logger_connector.epoch_end_reached()

    def on_run_start(self) -> None:
        """Log a short run at shorter intervals, unless a person set one."""
        super().on_run_start()
        steps = self.trainer.estimated_stepping_batches
        if self.trainer.logs_as_needed and math.isfinite(steps):  # type: ignore[attr-defined]
            self.trainer.log_every_n_steps = max(1, min(_LONGEST, int(steps) // _POINTS))  # type: ignore[attr-defined]

    def on_run_end(self) -> None:
        """Keep what was trained before anything is made of it: merges, the report and files can fail."""
        for callback in self.trainer.checkpoint_callbacks:
            callback.on_train_end(self.trainer, self.trainer.lightning_module)
        super().on_run_end()


class DowserTrainer(Trainer):
    """Runs the verbs of the command line.

    Attributes:
        planned_for: devices and strategy that `plan` counts for; None = this trainer's own.
        planned_on_cpu: whether `plan` is for a CPU, for which no hours are known.
        overwrite: whether a run may replace another one in its folder: False = it is refused, as on the command line
            unless `--overwrite true`; True = what that left goes when training begins; None = as it comes, for
            notebooks that fit again and again.
        answers_for: of `predict`, for whom answers are written: "rows" or "server", see `predict`.
        logs_as_needed: whether `log_every_n_steps` was left to the run: 50, fewer where that gives less than 20 points.
    """

    planned_for: Placement | None = None
    planned_on_cpu = False
    overwrite: bool | None = None
    answers_for = "rows"

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # the Trainer's own, which the command line looks up
        super().__init__(*args, **kwargs)
        self.logs_as_needed = kwargs.get("log_every_n_steps") is None
        steps = self.fit_loop.epoch_loop
        self.fit_loop = _FinishingFitLoop(self, self.fit_loop.min_epochs, self.fit_loop.max_epochs)
        self.fit_loop.epoch_loop = steps

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Fine-tune a model and report what it learnt and what it forgot.

        Args:
            model: the module.
            train_dataloaders: instead of a data module.
            val_dataloaders: instead of a data module.
            datamodule: training rows and evaluation tasks.
            ckpt_path: checkpoint to go on from; `last` is the newest one of this run's folder.
            weights_only: refuse checkpoints that hold anything but tensors and plain data.

        Raises:
            DowserError: if another process trains into the same folder, or the folder holds another run and
                `overwrite` is False.
        """
        with self._folder_held():
            if self.overwrite is False and self._writes_run():
                refuse_another_run(Path(self.default_root_dir), self._requeued() or ckpt_path)
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)

    def _folder_held(self) -> AbstractContextManager[None]:
        """The lock of the run's folder, which the first process takes for all."""
        mine = self._writes_run() and self.is_global_zero
        return alone(Path(self.default_root_dir), "run") if mine else nullcontext()

    def _writes_run(self) -> bool:
        """Not where it only probes or tries its code, nor on a remote disk."""
        trains = self.limit_train_batches != 0 and not self.fast_dev_run  # type: ignore[attr-defined]
        return trains and "://" not in str(self.default_root_dir)

    def _requeued(self) -> str | None:
        """Whether Slurm started the same command again, and Lightning goes on from where it was stopped."""
        stopped = SLURMEnvironment.detect() and list(Path(self.default_root_dir).glob("hpc_ckpt_*"))
        return "hpc" if stopped else None

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        format: Literal["rows", "server"] = "rows",
    ) -> Any:
        """Write the model's answers.

        Args:
            model: the module.
            dataloaders: instead of a data module.
            datamodule: tasks; they need no references.
            return_predictions: whether they are given back as well.
            ckpt_path: checkpoint of the weights; `last` is the newest one of this run's folder.
            weights_only: refuse checkpoints that hold anything but tensors and plain data.
            format: `rows` writes `predictions.jsonl`; `server` also writes `server/<task>.json` or `.xlsx`, as the
                evaluation server of each task takes it (GQA, VQAv2, OK-VQA, VizWiz, TextVQA, MMBench).

        Raises:
            DowserError: if a task has no server, or not all of its questions would be answered.
        """
        self.answers_for = format
        limit = self.limit_predict_batches
        if format == "server" and (isinstance(limit, int) or limit != 1.0):  # 1 is one batch
            raise DowserError(f"--format server takes all questions, got --trainer.limit_predict_batches {limit}")
        return super().predict(model, dataloaders, datamodule, return_predictions, ckpt_path, weights_only)

    def probe(self, model: LightningModule, datamodule: LightningDataModule | None = None) -> None:
        """Run only the importance pass and fill the cache; no data is read and nothing is trained."""
        self.limit_train_batches = 0
        self.limit_val_batches = 0
        self.num_sanity_val_steps = 0
        self.fit_loop.max_epochs = 1
        model.chat_template = getattr(datamodule, "chat_template", None)  # type: ignore[assignment] # what ends a prompt
        self.fit(model, train_dataloaders=[])

    def plan(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        tokens: int | None = None,
        tokens_per_second: float | None = None,
        json: str | None = None,
    ) -> None:
        """Say what training would take: memory and the cards it fits on, hours, disk; no weight is read.

        Args:
            model: the module.
            datamodule: its training rows, of which some are encoded to see how long they are.
            tokens: length of a training row, image tokens included; None = measured, or where there are no data
                assumed.
            tokens_per_second: that all devices train on together; None = as measured on one card, for large models.
            json: file to write the numbers to as well.
        """
        placement = self.planned_for or Placement(type(self.strategy).__name__, self.world_size)
        rows, run = plan_run(self, model, datamodule, placement, tokens, tokens_per_second, self.planned_on_cpu)
        show(rows, run)
        if json is not None:
            write(json, rows, run)
