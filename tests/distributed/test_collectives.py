"""Two gloo processes: what one computes reaches the other, and so does what goes wrong."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dowser_pl.distributed import collectives

PROGRAM = """
import sys, torch
from datetime import timedelta
from torch import distributed
from dowser_pl.distributed import collectives
from dowser_pl.errors import DowserError, FileError, MissingFileError

distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
me = collectives.rank()
assert collectives.world_size() == 2

value = collectives.from_rank_zero(lambda: torch.tensor([0.1 + me, float("nan")]))
assert value[0].item() == torch.tensor(0.1).item() and value[1].isnan()
assert collectives.all_gather_numbered(lambda: {n: n * 10 for n in range(5) if n % 2 == me}) == [0, 10, 20, 30, 40]

class OddError(DowserError):
    pass

class Unsendable(Exception):
    def __init__(self):
        super().__init__("held by a lambda")
        self.held = lambda: 0

def fails(on, error):
    def compute():
        if me == on:
            raise error
        return {}
    return compute

for act, on, error, message in (
    (collectives.from_rank_zero, 0, ValueError("first is ill"), "first is ill"),
    (collectives.all_gather_numbered, 1, ValueError("second is ill"), "second is ill"),
    (collectives.all_gather_numbered, 1, Unsendable(), "Unsendable: held by a lambda"),
):
    try:
        act(fails(on, error))
    except Exception as caught:
        # where it happened with its own type and traceback, elsewhere as one that can be sent
        assert caught is error if me == on else message in f"{type(caught).__name__}: {caught}", caught
    else:
        raise AssertionError("process %d did not hear of it" % me)

for error, kind in (
    (DowserError("got 1"), DowserError),
    (OddError("got 1"), DowserError),
    (FileError(28, "the disk is full", "a.txt"), FileError),
    (MissingFileError("no a.txt"), MissingFileError),
    (PermissionError(13, "not yours", "a.txt"), PermissionError),
    (UnicodeDecodeError("utf-8", b"x", 0, 1, "a bug"), ValueError),
):
    try:
        collectives.all_gather_numbered(fails(1, error))
    except Exception as caught:
        assert caught is error if me == 1 else (type(caught), str(caught)) == (kind, str(error)), repr(caught)
distributed.destroy_process_group()
print("done")
"""


def test_alone_everything_is_just_called():
    assert (collectives.rank(), collectives.world_size()) == (0, 1)
    assert collectives.from_rank_zero(lambda: 3) == 3
    assert collectives.all_gather_numbered(lambda: {1: "b", 0: "a"}) == ["a", "b"]
    with pytest.raises(ValueError, match="mine"):
        collectives.all_gather_numbered(lambda: int("mine"))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_share_results_and_errors():
    root = Path(__file__).parents[2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    for run in runs:
        output, _ = run.communicate(timeout=120)
        assert run.returncode == 0 and "done" in output, output
