"""What fails on one process ends all of them, with that process' message.

A process whose peer is gone learns only that a connection was closed, and on GPUs not even that: it waits in a
collective until the time limit of the process group. So whoever fails writes the reason into the store through which
the processes found each other, and every process looks there once a second.
"""

import os
import signal
import sys
import threading
import time
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

from dowser_pl.callbacks.end_on_sigterm import end_now
from dowser_pl.distributed import collectives
from dowser_pl.errors import DowserError, message_of

__all__ = ["FailTogether"]

_LONGEST = 2000  # characters of a message


class FailTogether(Callback):
    """Ends all processes of a run with the message of the first that failed; nothing to do in a single process.

    Args:
        patience: seconds that a process has to come out of what it waits in, once it heard of another's failure;
            then it is ended where it stands.
        seconds: between two looks.
    """

    _number: ClassVar[int] = 0  # of the run in this process: a second one starts without the failure of the first

    def __init__(self, patience: float = 30.0, seconds: float = 1.0) -> None:
        if patience < 0 or seconds <= 0:
            raise DowserError(f"got patience {patience} and seconds {seconds}, expected at least 0 and more than 0")
        self.patience = patience
        self.seconds = seconds
        self._over: threading.Event | None = None
        self._told: tuple[int, str] | None = None  # rank and message of another that failed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to look for failures of other processes."""
        if collectives.world_size() == 1 or self._over is not None:
            return
        self._over, self._told = threading.Event(), None
        threading.Thread(target=self._look, args=(self._over, self._number), daemon=True).start()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End at once when asked to (SIGTERM): Lightning sends word to the others from inside its signal handler.

        They are wherever they are, so that would wait for ever.
        """
        if collectives.world_size() > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, end_now)

    on_train_start = on_validation_start = on_test_start = on_predict_start = on_sanity_check_start

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the others, or hear what ended this process too.

        Raises:
            DowserError: with the message of another process that failed before.
        """
        if collectives.world_size() == 1:
            return
        number = self._stop()
        reason = _reason(exception)
        try:
            first, text = self._told or _first_failure(number, reason)  # the store may be gone with who told
            if first == collectives.rank():
                _wait_until_heard(number)
                return
        except RuntimeError:  # the store went with the process that held it
            return
        if text != reason:
            raise DowserError(f"process {first} failed: {text}") from exception

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait for all: whoever is done earlier must not succeed where another fails in the end."""
        if collectives.world_size() > 1:
            trainer.strategy.barrier()
            self._stop()

    def _stop(self) -> int:
        if self._over is not None:
            self._over.set()
        self._over = None
        FailTogether._number += 1
        return self._number - 1

    def _look(self, over: threading.Event, number: int) -> None:
        try:
            store, key = _store(), _key(number)
            while not store.check([key]):
                if over.wait(self.seconds):
                    return
            first, text = _parted(store.get(key))
            if first == collectives.rank():
                return
            self._told = first, text
            self._say(f"process {first} failed, so process {collectives.rank()} ends: {text}")
            store.set(_heard(number, collectives.rank()), "1")
        except RuntimeError:  # the store went with the process that held it
            if over.wait(self.seconds):
                return
            self._say(f"the first process is gone, so process {collectives.rank()} ends")
        if not over.wait(self.patience):
            os._exit(1)

    @staticmethod
    def _say(text: str) -> None:
        sys.stderr.write(f"\ndowser_pl: {text}\n")
        sys.stderr.flush()


def _reason(exception: BaseException) -> str:
    kind = "" if isinstance(exception, ValueError | OSError | SystemExit) else f"{type(exception).__name__}: "
    text = message_of(exception) or f"{kind}{exception}".removesuffix(": ")  # Ctrl-C says nothing beside its name
    return text[:_LONGEST]


def _first_failure(number: int, reason: str) -> tuple[int, str]:
    """Rank and message of the process that failed first, after this one has failed as well."""
    store, rank = _store(), collectives.rank()
    written = store.compare_set(_key(number), "", f"{rank} {reason}")
    store.set(_heard(number, rank), "1")
    return _parted(written)


def _wait_until_heard(number: int, seconds: float = 5.0) -> None:
    """Stay, as the store may be here."""
    store, end = _store(), time.monotonic() + seconds
    keys = [_heard(number, rank) for rank in range(collectives.world_size())]
    while not store.check(keys) and time.monotonic() < end:
        time.sleep(0.05)


def _parted(written: bytes) -> tuple[int, str]:
    rank, _, text = written.decode(errors="replace").partition(" ")
    return int(rank), text


def _key(number: int) -> str:
    return f"dowser_pl/failure/{number}"


def _heard(number: int, rank: int) -> str:
    return f"{_key(number)}/heard/{rank}"


def _store() -> Any:
    return distributed.distributed_c10d._get_default_store()
