"""What is measured with: peak memory of a block of code beyond what was held when it began, and seconds by phase.

The kernel keeps the high-water mark of the resident memory (VmHWM); writing 5 to /proc/self/clear_refs sets it back to
what is resident now. What was freed earlier is handed back first (malloc_trim), so that a block is charged for all it
takes, also where it could have taken it from memory that an earlier block left behind.

Resident memory is more than memory in use: glibc before 2.38 cannot reuse the hole that an aligned block leaves for
another of its size, which doubles what a forward pass takes. `nothing_kept_back` makes the two the same, at the price
of speed.
"""

import ctypes
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["PeakMemory", "PhaseClock", "nothing_kept_back"]

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, from malloc.h


@dataclass
class PeakMemory:
    """Context manager that measures its block.

    Args:
        device: of the model; CUDA memory is measured beside that of the process.

    Attributes:
        host_bytes: resident memory beyond that at the start; None where the system cannot tell.
        device_bytes: CUDA memory beyond that at the start; 0 on the CPU.
        problem: why `host_bytes` is None.
    """

    device: torch.device
    host_bytes: int | None = None
    device_bytes: int = 0
    problem: str = ""
    _held: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self._held["device"] = torch.cuda.memory_allocated(self.device)
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
        if trim is not None:
            trim(0)
        try:
            _RESET.write_text("5", encoding="ascii")
            self._held["host"] = _resident("VmRSS")
        except OSError as error:
            self.problem = f"peak memory of the process is not measured, the high-water mark cannot be reset: {error}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.problem:
            self.host_bytes = max(0, _resident("VmHWM") - self._held["host"])
        if self.device.type == "cuda":
            self.device_bytes = torch.cuda.max_memory_allocated(self.device) - self._held["device"]


class PhaseClock:
    """Wall-clock seconds by phase; waits for the device before and after each.

    Args:
        device: of the model.

    Attributes:
        seconds: phase -> seconds so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def with_total(self) -> dict[str, float]:
        """All phases and their sum."""
        return {**self.seconds, "total": sum(self.seconds.values())}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def nothing_kept_back() -> Iterator[None]:
    """Let malloc hand every freed block of 64 KiB or more back at once; does nothing without glibc.

    Afterwards its thresholds are those that it ends with by itself when large blocks are freed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)

    def set_thresholds(size: int) -> None:
        mallopt(_MMAP_THRESHOLD, size)
        mallopt(_TRIM_THRESHOLD, 2 * size)

    set_thresholds(1 << 16)
    try:
        yield
    finally:
        set_thresholds(1 << 25)


def _resident(key: str) -> int:
    """Bytes, from a line like `VmHWM:   12345 kB`."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {key}")
