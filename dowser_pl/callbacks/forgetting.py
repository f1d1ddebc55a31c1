"""The forgetting report: every task before and after, on the same questions.

"Before" is Lightning's sanity check run over the whole validation data (`num_sanity_val_steps: -1`): it
comes after the masks are built and before the first step, inside an isolated random state. "After" is the
validation at the end of the last epoch, or one more if training stopped in between. Where a method merges the tuned
model with its base after training, that is measured before, and "after" once more on what it made.
"""

import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from dowser_pl import __version__
from dowser_pl.callbacks.answers import add_pictures, latest_answers
from dowser_pl.callbacks.curve import Curve, find_curve
from dowser_pl.callbacks.dowser.callback import Dowser
from dowser_pl.callbacks.dowser.importance import behaviour
from dowser_pl.callbacks.dowser.merging import BeforeMerge
from dowser_pl.callbacks.evaluation_cache import EvaluationCache
from dowser_pl.callbacks.memory import peak_memory_bytes
from dowser_pl.callbacks.order import find_callback, need_dowser
from dowser_pl.distributed import collectives
from dowser_pl.errors import DowserError
from dowser_pl.importance import digest
from dowser_pl.importance.drift import Drift
from dowser_pl.masking import ReportedModule, TunedModule, reported_module, tuned_module
from dowser_pl.metrics import metric_label, scoring
from dowser_pl.reporting import (
    Counts,
    CurvePoint,
    DriftScore,
    KeptModel,
    Report,
    ReportedDrift,
    Seconds,
    TaskScore,
    comparable,
    role_means,
    scalars,
    text_table,
    write_report,
)
from dowser_pl.reporting.answers import Moment, Row, counted, write_answers

__all__ = ["Forgetting"]


_WORLD = "embedded:world"
_MORE = """\
The null space with replay, which takes nothing of what was pretrained on either, keeps and learns more here (seed 0,
the same 8 epochs: upstream 0.988, downstream 0.893, H-score 0.938):
  python -m dowser_pl fit -c quickstart -c method/recommended --model.optimizer.lr 4e-3 \\
    --trainer.default_root_dir runs/recommended"""


class Forgetting(Callback, BeforeMerge):
    """Measures every task before, during and after training; writes `report.json`, `.md`, `.html`, `.png`.

    Its numbers go to every logger of the trainer as well, see `dowser_pl.reporting.scalars`.

    Args:
        cache_dir: where the scores of base models are kept between runs, so that the same model is not asked the same
            questions twice; None = always ask.
    """

    def __init__(self, cache_dir: str | None = "runs/cache") -> None:
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.tuned: dict[str, float] | None = None
        """Scores after training and before a merge, once there was one."""
        self.kept: KeptModel | None = None
        """What `after` is of, where a validated model was chosen when training ended."""
        self.written: Report | None = None
        """Once training has ended, on the first process."""
        self._answers: list[Row] = []  # of all processes, before and, since there is an evaluation, after
        self._evaluated_at = self._tuned_at = -1
        self._seconds = {"fit": 0.0, "evaluate": 0.0}  # of earlier parts of a resumed run, and so far
        self._fit_start: float | None = None
        self._evaluate_start = 0.0
        self._cache: EvaluationCache | None = None  # where what is measured before training goes
        self._asked: float = float("inf")  # num_sanity_val_steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse settings under which there would be no "before" column, before anything is computed."""
        trains = stage == "fit" and trainer.limit_train_batches != 0 and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if trains:
            reported_module(pl_module, self)
            need_dowser(trainer, self)
        if trains and trainer.num_sanity_val_steps != float("inf"):
            raise DowserError(
                "the report compares with the base model, which is measured on all evaluation data before training: "
                f"set --trainer.num_sanity_val_steps -1, got {trainer.num_sanity_val_steps}"
            )
        if trains and trainer.limit_val_batches == 0:
            raise DowserError(
                "--trainer.limit_val_batches 0 leaves nothing to report; give a small number or share instead"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not measure "before" where it is known.

        That is after a checkpoint, as Lightning would after one of an epoch's end, on tuned weights; and where the same
        model was asked the same questions in an earlier run.
        """
        self._cache, self._asked = None, trainer.num_sanity_val_steps
        if trainer.ckpt_path is not None:
            trainer.num_sanity_val_steps = 0
        elif self.cache_dir is not None and trainer.num_sanity_val_steps == float("inf") and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            start = time.monotonic()
            self._look_up(trainer, pl_module, self.cache_dir)
            self._seconds["evaluate"] += time.monotonic() - start  # questions were made ready

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; when resuming it goes on where the checkpoint left it.

        Raises:
            DowserError: if a task was not measured on the base model, before hours of training rather than after.
        """
        self._fit_start, self.kept = time.monotonic(), None
        trainer.num_sanity_val_steps = self._asked  # for the next fit of this trainer
        module = reported_module(pl_module, self)
        missing = [task.name for task in module.tasks() if task.name not in self.before]
        if missing and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise DowserError(
                f"the base model was not measured on {', '.join(missing)}: got {', '.join(self.before) or 'no task'} "
                "in the checkpoint; resume with the evaluation data it was made with"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the evaluation clock."""
        self._evaluate_start = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The latest scores, and the time they took."""
        module, seconds = reported_module(pl_module, self), time.monotonic() - self._evaluate_start
        self._seconds["evaluate"] += seconds
        if trainer.state.fn == TrainerFn.FITTING and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            moment: Moment = "before" if trainer.sanity_checking else "after"
            self._answers = latest_answers(module, self._answers, moment)
        elif trainer.state.fn == TrainerFn.VALIDATING:  # of what is not trained here, beside its scores
            answers = latest_answers(module, [], "after")
            if trainer.is_global_zero and trainer.logger is not None and trainer.logger.log_dir is not None:
                write_answers(answers, Path(trainer.logger.log_dir))
        if trainer.sanity_checking:
            self.before = dict(module.scores)
            cache = self._cache if trainer.is_global_zero else None
            if cache is not None and cache.save(self.before, self._answers, seconds):
                rank_zero_info(f"The base model's scores are kept in {cache.path}")
        else:
            self._seconds["fit"] -= seconds  # the clock of training runs on meanwhile
            self.after = dict(module.scores)
            self._evaluated_at = trainer.global_step

    def before_merge(self, trainer: Trainer, pl_module: TunedModule) -> None:
        """Measure the tuned model, unless it just was; what is merged is measured when training ends."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.evaluate(trainer)
        self.tuned, self._tuned_at, self._evaluated_at = dict(self.after), self._evaluated_at, -1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make sure that "after" is the final model, then write and print the report."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.evaluate(trainer)
        curve = find_curve(trainer)
        self._seconds["evaluate"] += curve.seconds
        self._seconds["fit"] -= curve.seconds
        left_out = _left_out(trainer)
        if trainer.is_global_zero:
            module = reported_module(pl_module, self)
            report = self.written = self.report(trainer, module)
            report.diagnostics.update(left_out)
            folder = Path(trainer.default_root_dir)
            add_pictures(self._answers, module)
            sys.stdout.write(f"\n{text_table(report)}\n\n")
            sys.stdout.flush()
            write_report(report, folder, self._answers)
            for logger in trainer.loggers:
                logger.log_metrics(scalars(report), trainer.global_step)
            if report.model == _WORLD and report.method == "ModelDowser":
                sys.stdout.write(f"{_MORE}\n\n")
            rank_zero_info(f"Report written to {folder}/report.json, .md, .html and .png")

    def report(self, trainer: Trainer, module: ReportedModule) -> Report:
        """Everything known about the run.

        Raises:
            DowserError: if the Dowser callback has not counted entries yet.
        """
        dowser = find_callback(trainer, Dowser)
        if dowser is None or dowser.counts is None:
            raise DowserError("the report tells what Dowser counted, got none; ask for it once training has ended")
        frozen, trainable = dowser.counts
        settings, drift = dowser.method.settings(), dowser.drift
        return Report(
            method=str(settings["method"]),
            update_ratio=dowser.method.update_ratio,
            seed=int(os.environ.get("PL_GLOBAL_SEED", "0")),  # where seed_everything records it
            tasks={
                task.name: TaskScore(
                    task.role,
                    metric_label(task.metric),
                    self.before[task.name],
                    self.after[task.name],
                    {**scoring(task.metric, task.max_new_tokens), **getattr(task, "protocol", {})},
                )
                for task in module.tasks()
            },
            frozen=Counts(**vars(frozen)),
            trainable=Counts(**vars(trainable)),
            seconds=Seconds(probe=dowser.probe_seconds, **self._total_seconds()),
            peak_memory_bytes=peak_memory_bytes(),
            versions=_versions(),
            learning_rate=trainer.optimizers[0].defaults["lr"],
            steps=trainer.global_step,
            model=module.path,
            run=Path(trainer.default_root_dir).name,
            diagnostics=dowser.diagnostics | self._tuned_means(module) | _unmasked(dowser),
            update=dowser.update,
            frozen_digest=dowser.frozen_digest,
            curve=self._curve_points(find_curve(trainer), dowser.method.update_ratio),
            budget=find_curve(trainer).choice,
            questions=counted(self._answers, self.before, self.after),
            drift=_drift(drift),
            kept=self.kept,
        )

    def state_dict(self) -> dict[str, Any]:
        """Scores and seconds so far; after a merge those before it, as checkpoints hold the model before it."""
        merged = self.tuned is not None
        return {
            "before": self.before,
            "after": self.tuned if merged else self.after,
            "evaluated_at": self._tuned_at if merged else self._evaluated_at,
            "seconds": self._total_seconds(),
            "answers": json.dumps(self._answers),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the base model's scores from the checkpoint: the weights are no longer the base."""
        self.before, self.after = state_dict["before"], state_dict["after"]
        self._evaluated_at = state_dict["evaluated_at"]
        self._seconds = dict(state_dict["seconds"])
        self._answers = json.loads(state_dict.get("answers", "[]"))

    def _look_up(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        """Take "before" from an earlier run, or make ready to keep it."""
        dowser = find_callback(trainer, Dowser)
        if dowser is None or not dowser.base.tensors:
            return
        module = reported_module(pl_module, self)
        protocol = module.protocol()
        if protocol is None:
            return
        identity = {
            "weights": dowser.base.fingerprint,
            "model": digest(behaviour(tuned_module(pl_module, self).network)),
            "protocol": protocol,
        }
        self._cache = cache = EvaluationCache(folder, identity, [task.name for task in module.tasks()])
        known = collectives.from_rank_zero(cache.find)
        if known is not None:
            self.before, self._answers, trainer.num_sanity_val_steps = known.scores, known.answers, 0
            rank_zero_info(
                f"The base model's scores are known: {known.path} (which saves {known.seconds:.0f} s; "
                "--report.cache_dir null measures them anew)"
            )

    def evaluate(self, trainer: Trainer, anew: bool = False) -> None:
        """Make sure that `after` is of the model as it is.

        Args:
            trainer: its validation loop.
            anew: the model is another one than that of the last step.
        """
        if self._evaluated_at == trainer.global_step and not anew:
            return
        trainer.validating = True
        validation = trainer.fit_loop.epoch_loop.val_loop
        validation.restarting = False  # after a resume at the last step it would take all batches for done
        validation.run()
        trainer.training = True

    def means(self, module: ReportedModule, scores: Mapping[str, float]) -> dict[str, float]:
        """Means of some scores over the tasks of each role, as `dowser_pl.reporting.role_means`."""
        label, before = metric_label, self.before
        return role_means(
            (task.role, comparable(label(task.metric), task.role, before[task.name], scores[task.name]))
            for task in module.tasks()
        )

    def _tuned_means(self, module: ReportedModule) -> dict[str, float]:
        """Scores before a merge; left out where there was none."""
        means = {} if self.tuned is None else self.means(module, self.tuned)
        return {f"tuned_{name.removesuffix('_mean')}": value for name, value in means.items()}

    def _curve_points(self, curve: Curve, update_ratio: float | None) -> list[CurvePoint]:
        """From the base to all that was trained; none where no curve was asked for."""
        if not curve.points or update_ratio is None:
            return []
        tuned = CurvePoint(update_ratio, self.after if self.tuned is None else self.tuned)
        return [CurvePoint(0.0, self.before), *curve.points, tuned]

    def _total_seconds(self) -> dict[str, float]:
        running = 0.0 if self._fit_start is None else time.monotonic() - self._fit_start
        return {"fit": self._seconds["fit"] + running, "evaluate": self._seconds["evaluate"]}


def _drift(measured: Mapping[str, Drift]) -> ReportedDrift | None:
    """What is told of drift; nothing of a model that diverged until it says nothing finite."""
    if not measured:
        return None
    if not all(math.isfinite(each.kl) for each in measured.values()):
        rank_zero_warn("the tuned model says nothing finite on rows of the base: it diverged, and drift is not told")
        return None
    return ReportedDrift({kind: DriftScore(**vars(each)) for kind, each in measured.items()})


def _unmasked(dowser: Dowser) -> dict[str, float]:
    """What `model.also_train` trains in full; left out where there is none."""
    unmasked = sum(math.prod(dowser.base.tensors[key][1]) for key in dowser.base.whole)
    return {"entries_trained_without_a_mask": unmasked} if unmasked else {}


def _left_out(trainer: Trainer) -> dict[str, float]:
    """How many rows of the data could not be used, where there are any; all processes must call it."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    shares = collectives.all_gather_numbered(lambda: {collectives.rank(): getattr(data, "left_out", [])})
    training = getattr(data, "num_unreadable", 0) + len(set(chain(*shares)))
    asked = sum(getattr(task, "left_out", 0) for task in getattr(data, "tasks", []))
    counts = {"training_rows_left_out": training, "evaluation_rows_left_out": asked}
    return {name: number for name, number in counts.items() if number}


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "lightning", "transformers")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"dowser_pl": __version__, "python": platform.python_version(), **packages, "device": device}
