"""`bench_train.py --strategy` prints its table and nothing else."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import tests.benchmarks.conftest  # noqa: F401 - ranks import this file without pytest
from tests.distributed.harness import run

from train.strategy import measured_here  # isort: skip - a script, found by the line above


def measured():
    """Warnings are raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return measured_here("tiny")["collectives"]


def test_processes_that_hold_a_model_together_say_nothing():
    """Three layers and the rest, gathered for the forward and the backward pass; three layers' gradients."""
    for counted in run(measured):
        assert counted == {"c10d._allgather_base_": 8, "c10d._reduce_scatter_base_": 3}


@pytest.mark.slow
def test_bitsandbytes_asks_for_nothing():
    scripts = Path(__file__).parents[2] / "benchmarks"
    command = [sys.executable, "-c", "import bench_train"]
    done = subprocess.run(command, cwd=scripts, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
