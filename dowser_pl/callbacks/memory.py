"""Peak memory of this process, in bytes."""

import sys

import torch

__all__ = ["peak_memory_bytes"]


def peak_memory_bytes() -> int:
    """Peak device memory where there is a CUDA device, else the peak resident memory of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        return 0  # the standard library cannot tell
    import resource  # noqa: PLC0415 - does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
