"""Peak memory of this process, in bytes."""

import sys
from pathlib import Path

import torch

__all__ = ["peak_memory_bytes"]


def peak_memory_bytes() -> int:
    """Peak device memory where there is a CUDA device, else the peak resident memory of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "linux":
        # not getrusage: a program that a large process starts begins there with the peak of that process
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
    if sys.platform == "win32":
        return 0  # the standard library cannot tell
    import resource  # noqa: PLC0415 - does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
