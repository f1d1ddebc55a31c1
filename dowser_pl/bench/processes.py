"""One cell, one process: started from a server that has loaded everything once, its output in a file."""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

from dowser_pl.files.atomic import write_atomically

__all__ = ["Ended", "Processes", "Runner"]

_TIMES = "process.json"


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        status: 0 if every command did well; negative, the number of a signal that killed it.
        seconds: of each command.
        wall: seconds with the start.
        peak_memory_bytes: of the process; None if unknown.
    """

    status: int
    seconds: Sequence[float]
    wall: float
    peak_memory_bytes: int | None

    @property
    def killed(self) -> str:
        """Which signal ended it, since its log cannot say so; empty if none did."""
        if self.status >= 0:
            return ""
        hint = ", as the system does when memory runs out" if self.status == -9 else ""
        return f"the process was killed by signal {-self.status}{hint}"


class Runner(Protocol):
    """Runs the commands of one cell."""

    def __call__(self, lines: Sequence[Sequence[str]], folder: Path) -> Ended:
        """Run them one after the other until one fails; their output goes to `<folder>/log.txt`."""


class Processes:
    """A runner whose processes come from a fork server, so that libraries are loaded once; else each loads its own."""

    def __init__(self) -> None:
        server = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: BaseContext = multiprocessing.get_context("forkserver" if server else "spawn")
        if server:
            self._context.set_forkserver_preload(["dowser_pl.bench.preload"])

    def __call__(self, lines: Sequence[Sequence[str]], folder: Path) -> Ended:
        """See `Runner`; an interruption ends the process too."""
        start = time.monotonic()
        process = self._context.Process(target=_work, args=([list(line) for line in lines], folder))  # type: ignore[attr-defined]
        process.start()
        try:
            process.join()
        except BaseException:
            process.kill()
            process.join()
            raise
        told: dict[str, Any] = {"seconds": [], "peak_memory_bytes": None}
        with suppress(FileNotFoundError):  # it failed before it could tell
            told = json.loads((folder / _TIMES).read_text(encoding="utf-8"))
        return Ended(process.exitcode or 0, told["seconds"], time.monotonic() - start, told["peak_memory_bytes"])


def _work(lines: list[list[str]], folder: Path) -> None:
    """What the process does."""
    _end_with_parent()
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    from dowser_pl.__main__ import main  # noqa: PLC0415 - the bench itself needs none of it
    from dowser_pl.callbacks.memory import peak_memory_bytes  # noqa: PLC0415

    seconds = []
    for line in lines:
        start = time.monotonic()
        sys.argv[1:] = line  # what Lightning starts again for every further device
        print("python -m dowser_pl", *line, flush=True)  # noqa: T201 - the log begins with what was asked
        status = main(line)
        if status:
            sys.exit(status)
        seconds.append(time.monotonic() - start)
    told = {"seconds": seconds, "peak_memory_bytes": peak_memory_bytes()}
    write_atomically(folder / _TIMES, json.dumps(told))


def _end_with_parent() -> None:
    """Do not outlive a bench that was killed: the next one may run this very cell."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    Thread(target=watch, daemon=True).start()
