"""The peak that a report tells is this process' own."""

import subprocess
import sys

import pytest
import torch

from dowser_pl.callbacks.memory import peak_memory_bytes

CHILD = (
    "import re, sys, types; sys.modules['torch'] = types.SimpleNamespace("
    "cuda=types.SimpleNamespace(is_available=lambda: False))\n"
    "import importlib.util as u; s = u.spec_from_file_location('memory', sys.argv[1]); m = u.module_from_spec(s)\n"
    "s.loader.exec_module(m); print(m.peak_memory_bytes())"
)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="device memory is told then")
@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory_that_was_held_once_counts_and_that_of_the_parent_does_not():
    before = peak_memory_bytes()
    held = torch.ones(before // 4 + (1 << 26))  # more than the peak so far, in bytes
    assert peak_memory_bytes() >= before + (1 << 26)
    source = sys.modules[peak_memory_bytes.__module__].__file__
    child = int(subprocess.check_output([sys.executable, "-c", CHILD, source]))
    assert 0 < child < held.nbytes / 2
