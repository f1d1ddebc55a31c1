"""SIGTERM ends a run at once, or where a training step is being made at the end of it, and the run says what is kept.

Lightning ends a run behind its next batch alone, which may be minutes away: it says nothing to an importance pass, to
the loading of a model or to a merge.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

__all__ = ["ENDED", "EndOnSigterm", "end_now", "ending_on_sigterm", "finished_first"]

ENDED = "ended by SIGTERM"


class EndOnSigterm(Callback):
    """Lets a step be finished, and puts what is kept into the message; the rest does `ending_on_sigterm`."""

    _stepping: ClassVar[bool] = False  # there is one handler in a process
    _asked: ClassVar[bool] = False  # to end, while something was finished first

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """From here on Lightning ends the run, behind the step."""
        EndOnSigterm._stepping = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """The step is made."""
        EndOnSigterm._stepping = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End before an evaluation that follows a step in which the signal came.

        Raises:
            SIGTERMException: then.
        """
        if trainer.received_sigterm:
            raise SIGTERMException(ENDED)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say in the message what is kept."""
        EndOnSigterm._stepping = False
        if isinstance(exception, SIGTERMException):
            exception.args = (_what_is_kept(trainer),)


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises `SIGTERMException` wherever the process is, but for a training step.

    Lightning's own handler, once it is there, calls this one too.
    """
    if threading.current_thread() is not threading.main_thread():  # others cannot have handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, _end_outside_of_steps)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        EndOnSigterm._asked = False  # the next run of this process is asked for itself


@contextmanager
def finished_first() -> Iterator[None]:
    """Within it the run is not ended, as while a checkpoint is written; right behind it, if SIGTERM came.

    Raises:
        SIGTERMException: then.
    """
    before, EndOnSigterm._stepping = EndOnSigterm._stepping, True
    try:
        yield
    finally:
        EndOnSigterm._stepping = before
    if EndOnSigterm._asked and not before:
        raise SIGTERMException(ENDED)


def end_now(number: int, frame: Any) -> None:  # noqa: ARG001
    """A handler that raises `SIGTERMException`."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one means it
    raise SIGTERMException(ENDED)


def _end_outside_of_steps(number: int, frame: Any) -> None:
    if EndOnSigterm._stepping:
        EndOnSigterm._asked = True
    else:
        end_now(number, frame)


def _what_is_kept(trainer: Trainer) -> str:
    steps = trainer.global_step
    if trainer.state.fn != "fit" or not steps:
        return ENDED
    folders = [each.dirpath for each in trainer.checkpoint_callbacks if getattr(each, "dirpath", None) is not None]  # type: ignore[attr-defined]
    last = next((path for folder in folders if (path := Path(str(folder)) / "last.ckpt").exists()), None)
    if last is None:
        return f"{ENDED} after {steps} steps, before the first checkpoint (--checkpoint.every_n_steps)"
    return f"{ENDED} after {steps} steps; the same command with --ckpt_path last goes on from {last}"
