"""Functions on several processes that talk over gloo on this machine, as `torchrun` would start them.

Every call forks fresh processes from one that has imported everything already, so a call costs a fraction of a second
beside what the function does, and nothing is left over from the call before it. To Lightning the processes look
started by `torchrun`: a `Trainer` with `devices=2` starts none itself.

    run(train, folder, precision="bf16-true")   # -> what `train(folder, precision=...)` returned, by rank
    outcomes(train, folder)                     # -> how each rank ended, where some are meant to fail

Functions live at the top of a module; arguments and results are pickled. One process runs without a process group.
"""

import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed

PRELOADED = [
    "dowser_pl.cli.main",
    "dowser_pl.callbacks",
    "tests.tiny_run",
    "tests.tiny_models",
    "tests.distributed.harness",
]
START = 150.0  # seconds until the first process must have imported everything, on a busy machine
SECONDS = 100.0  # that a call may take then
GRACE = 20.0  # that the other ranks have to end after the first one failed
_SHOWN = 4000  # characters of a rank's output in a message


class RankError(AssertionError):
    """A rank failed; the message has its traceback and the end of its output."""


@dataclass
class Outcome:
    """How one rank ended.

    Attributes:
        value: what the function returned.
        error: traceback as text, None if it returned.
        message: type and text of the exception alone.
        status: exit status of the process, negative for a signal; None if it had to be killed by the harness.
        output: what it printed.
        at: when it ended, `time.monotonic()`.
    """

    value: Any = None
    error: str | None = None
    message: str = ""
    status: int | None = None
    output: str = ""
    at: float = 0.0

    @property
    def returned(self) -> bool:
        """Whether the function came to its end."""
        return self.status == 0 and self.error is None


def run(
    function: Callable[..., Any], *arguments: Any, ranks: int = 2, seconds: float = SECONDS, **options: Any
) -> list[Any]:
    """What the function returned on every rank.

    Raises:
        RankError: if a rank raised, died, or was not done after ``seconds``; that which failed first comes first.
    """
    ended = outcomes(function, *arguments, ranks=ranks, seconds=seconds, **options)
    bad = sorted((outcome.at, rank) for rank, outcome in enumerate(ended) if not outcome.returned)
    if bad:
        raise RankError("\n".join(_told(rank, ended[rank]) for _, rank in bad))
    return [outcome.value for outcome in ended]


def alone(function: Callable[..., Any], *arguments: Any, seconds: float = SECONDS, **options: Any) -> Any:
    """What the function returned in one process of its own."""
    return run(function, *arguments, ranks=1, seconds=seconds, **options)[0]


def outcomes(
    function: Callable[..., Any],
    *arguments: Any,
    ranks: int = 2,
    seconds: float = SECONDS,
    grace: float = GRACE,
    **options: Any,
) -> list[Outcome]:
    """How the function ended on every rank; none is running any more.

    Args:
        function: importable by its name.
        *arguments: to it.
        ranks: processes.
        seconds: until all are killed, once they have started.
        grace: seconds that the others have once one has failed.
        **options: to the function.
    """
    with TemporaryDirectory() as folder:
        job = _Job(pickle.dumps((function.__module__, function.__qualname__, arguments, options)), ranks, Path(folder))
        return job.finish(seconds, grace)


def command_line(*arguments: str) -> None:
    """``python -m dowser_pl ...`` in this process."""
    importlib.import_module("dowser_pl.cli.main").main(list(arguments))


class _Job:
    def __init__(self, call: bytes, ranks: int, folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        # the store lies here and not on rank 0, so its port is the system's choice and never taken by another
        self._store = distributed.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False) if ranks > 1 else None
        port = 0 if self._store is None else self._store.port
        self._files = [folder / f"rank{rank}" for rank in range(ranks)]
        self._ended = [Outcome() for _ in range(ranks)]
        self._pipes: dict[Connection, int] = {}
        self._processes: list[Any] = []
        environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        for rank in range(ranks):
            mine, theirs = context.Pipe(duplex=False)
            surroundings = environment | (_launched(rank, ranks, port) if ranks > 1 else {})
            process: Any = context.Process(
                target=_work, args=(call, surroundings, str(Path.cwd()), str(self._files[rank]), theirs), daemon=False
            )
            process.start()
            theirs.close()
            self._pipes[mine] = rank
            self._processes.append(process)

    def finish(self, seconds: float, grace: float) -> list[Outcome]:
        started = time.monotonic() + START
        while (late := [pipe for pipe in self._pipes if not pipe.poll()]) and time.monotonic() < started:
            wait(late, 1.0)
        end = time.monotonic() + (0.0 if late else seconds)
        for pipe in () if late else self._pipes:
            with suppress(EOFError):  # it died; said below
                pipe.recv_bytes()
        open_pipes = dict(self._pipes)
        try:
            while open_pipes and (left := end - time.monotonic()) > 0:
                for pipe in wait(list(open_pipes), left):
                    rank = open_pipes.pop(pipe)  # type: ignore[index, arg-type]
                    self._receive(rank, pipe)  # type: ignore[arg-type]
                    if not self._ended[rank].returned:
                        end = min(end, time.monotonic() + grace)
        finally:
            for rank, process in enumerate(self._processes):
                if self._ended[rank].status is None:
                    os.kill(process.pid, signal.SIGKILL)
                    self._ended[rank].at = time.monotonic()
                process.join()
                process.close()
            for pipe in self._pipes:
                pipe.close()
        for outcome, file in zip(self._ended, self._files, strict=True):
            outcome.output = file.read_text(errors="replace") if file.exists() else ""
        return self._ended

    def _receive(self, rank: int, pipe: Any) -> None:
        outcome = self._ended[rank]
        try:
            outcome.value, outcome.error, outcome.message = pickle.loads(pipe.recv_bytes())
        except EOFError:
            outcome.error = "it died without a word"
        self._processes[rank].join(GRACE)
        outcome.status, outcome.at = self._processes[rank].exitcode, time.monotonic()


def _launched(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What `torchrun` sets."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _work(call: bytes, environment: dict[str, str], folder: str, log: str, pipe: Any) -> None:
    """One rank."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    pipe.send_bytes(b"started")
    value, error, message = None, None, ""
    try:
        if int(environment.get("WORLD_SIZE", "1")) > 1:
            distributed.init_process_group("gloo", timeout=timedelta(seconds=50))
        module, name, arguments, options = pickle.loads(call)
        value = getattr(importlib.import_module(module), name)(*arguments, **options)
    except BaseException as problem:  # noqa: BLE001 - told by the other side
        error, message = traceback.format_exc(), f"{type(problem).__name__}: {problem}"
    sys.stdout.flush()
    sys.stderr.flush()
    pipe.send_bytes(pickle.dumps((value, error, message)))
    pipe.close()
    if distributed.is_initialized() and error is None:
        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(0 if error is None else 1)


def _told(rank: int, outcome: Outcome) -> str:
    if outcome.status is None:
        how = "was not done in time"
    elif outcome.error is not None:
        how = "failed" if outcome.status >= 0 else f"was ended by signal {-outcome.status}"
    else:
        how = f"exited with status {outcome.status}"
    return f"rank {rank} {how}\n{outcome.error or ''}\n{outcome.output[-_SHOWN:]}"
