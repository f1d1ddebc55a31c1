"""Seconds by phase, summed over all visits to a phase."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["PhaseClock"]


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
