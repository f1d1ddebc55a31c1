"""Checkpoints of a run: one `last.ckpt` that is whole at every moment."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from dowser_pl.callbacks.best_model import BestModel
from dowser_pl.callbacks.dowser.merging import Chooser
from dowser_pl.callbacks.end_on_sigterm import finished_first
from dowser_pl.distributed.checkpoint import checked, is_folder, read_file, read_folder, sealed
from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import abandoned, atomic_path, put_back, remove, rename_over
from dowser_pl.files.run_folder import clear, goes_on
from dowser_pl.masking import Protection

__all__ = ["AtomicCheckpointIO", "Checkpoints"]


class Checkpoints(ModelCheckpoint, Chooser):
    """Saves `last.ckpt` as training goes and when it ends; `fit --ckpt_path last` goes on from it, bit for bit.

    A fresh run that replaces another one in its folder keeps that one's checkpoint as `previous.ckpt`. The checkpoint
    of the last step is written right after it: evaluation, merges, the report and files can fail and be made again from
    it.

    Args:
        folder: where they lie; `<run>/checkpoints`.
        every_n_steps: optimizer steps between checkpoints; None = at the end of every epoch.
        keep_all: keep one more file per checkpoint instead of the last one only.
        keep: which model report, patch and `model/` are of: the `last` one, or the `best` of those that validation
            measured, by the H-score (the mean, where all tasks are of one role). Checkpoints then hold both.
    """

    def __init__(
        self,
        folder: str,
        every_n_steps: int | None = None,
        keep_all: bool = False,
        keep: Literal["last", "best"] = "last",
    ) -> None:
        if keep not in ("last", "best"):
            raise DowserError(f"checkpoint.keep is last or best; got {keep!r}")
        if every_n_steps is not None and every_n_steps < 1:
            raise DowserError(f"checkpoint.every_n_steps must be at least 1, or null for epochs; got {every_n_steps}")
        super().__init__(
            dirpath=folder,
            filename="{epoch}-{step}" if keep_all else "last",
            save_last=keep_all,  # a second file beside those that are kept
            save_top_k=-1 if keep_all else 1,
            every_n_train_steps=every_n_steps,
            save_on_train_epoch_end=True,  # whenever validation runs: between steps gradients may be half accumulated
            enable_version_counter=False,  # `last.ckpt` of a second run would be `last-v1.ckpt`
        )
        self._holds_end = False
        self._best = BestModel() if keep == "best" else None

    @property
    def keeps_best(self) -> bool:
        """Whether checkpoints hold the best model beside the last one."""
        return self._best is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a choice that could not be made when training ends."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self._best is not None:
            self._best.check(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the checkpoint of an earlier run aside, so that `last` is never of another run."""
        super().on_train_start(trainer, pl_module)
        if self._best is not None:
            self._best.begin(trainer, pl_module)
        self._holds_end = False
        # Lightning forgets this when it resumes and would save again before the next step, in mid accumulation
        self._last_global_step_saved = trainer.global_step
        last = Path(str(self.dirpath)) / "last.ckpt"
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        put_back(last)
        folder, overwrite = Path(trainer.default_root_dir), getattr(trainer, "overwrite", None)
        anew = trainer.ckpt_path is None or (overwrite is not None and not goes_on(folder, trainer.ckpt_path))
        if anew and overwrite:
            clear(folder, str(getattr(pl_module, "path", "")))
        if anew and last.exists():
            rename_over(last, last.with_name("previous.ckpt"), any_kind=True)
            rank_zero_info(
                f"This is a fresh run: the {last} of an earlier one is now previous.ckpt. "
                "To go on with an earlier run, add --ckpt_path last to its command"
            )
        for pattern in (".*.tmp.ckpt", ".*.ckpt.*.old"):  # of runs that were killed while they saved
            for left in filter(abandoned, last.parent.glob(pattern)):
                remove(left)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Written whole, whatever asks the run to end meanwhile."""
        with finished_first():
            super()._save_checkpoint(trainer, filepath)

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """Also what a kill in mid save left under another name; `fit` alone may touch it: another run may be saving."""
        if trainer.state.fn == "fit":
            put_back(Path(str(self.dirpath)) / "last.ckpt")
        return super()._find_last_checkpoints(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Save as often as was asked for, and after the last step of all."""
        super().on_train_batch_end(trainer, pl_module, *batch)
        if _was_last(trainer):
            self.on_train_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the scores of the model, where the best one is to be kept."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if self._best is not None and fitting and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._best.look(trainer, pl_module)
        super().on_validation_end(trainer, pl_module)

    def choose(self, trainer: Trainer, pl_module: LightningModule, entries: Protection) -> None:
        """Have the model be the best one again, where that is asked for."""
        if self._best is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._best.put_back(trainer, pl_module, entries)

    def state_dict(self) -> dict[str, Any]:
        """What Lightning keeps, and the best model so far."""
        best = {} if self._best is None else {"best": self._best.state_dict()}
        return super().state_dict() | best

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take both up again."""
        super().load_state_dict(state_dict)
        if self._best is not None and "best" in state_dict:
            self._best.load_state_dict(state_dict["best"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The trained model, where the last step was not one to save at."""
        if not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
        self._holds_end = not trainer.fast_dev_run  # type: ignore[attr-defined]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say in the message of what failed after the last step that no step is lost."""
        super().on_exception(trainer, pl_module, exception)
        if self._holds_end and isinstance(exception, Exception):
            last = Path(str(self.dirpath)) / "last.ckpt"
            _add(
                exception,
                f"All {trainer.global_step} steps are kept in {last}: once this is mended, the same command with "
                "--ckpt_path last trains no more and makes what is missing",
            )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Streams a checkpoint to a temporary neighbour and renames it: a kill or a full disk leaves the old one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` as `path`; remote paths are left to Lightning.

        Raises:
            OSError: if the disk is full; the previous checkpoint is untouched.
        """
        checkpoint = sealed(checkpoint)
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_path(path, any_kind=is_folder(path)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, file or folder, as a whole, and compare it with its digests.

        Raises:
            DowserError: if it is not one, or not what was written; the message names the tensor.
        """
        if "://" in str(path):
            return checked(super().load_checkpoint(path, *args, **kwargs), path)
        read = read_folder if is_folder(path) else read_file
        return read(path, kwargs.get("weights_only"))


def _was_last(trainer: Trainer) -> bool:
    """Whether the batch that was just trained on is the last one of the run."""
    loop = trainer.fit_loop
    if 0 <= trainer.max_steps <= trainer.global_step or (trainer.should_stop and loop._can_stop_early):
        return True
    epochs: Any = loop.epoch_progress.current
    return loop.epoch_loop._num_ready_batches_reached() and epochs.processed + 1 == loop.max_epochs


def _add(error: Exception, advice: str) -> None:
    """Write it behind the message of an error that stays what it is."""
    if isinstance(error, OSError) and error.strerror:
        of = "" if error.filename is None else f": {str(error.filename)!r}"
        error.strerror = f"{error.strerror}{of}. {advice}"
        del error.filename  # None would be shown
    else:
        error.args = (f"{error}. {advice}", *error.args[1:])
