"""Work split over the processes of a run, and its results put together again in order.

Everything here does nothing when there is one process.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import distributed

__all__ = ["from_first", "gather", "rank", "world_size"]

T = TypeVar("T")


def rank() -> int:
    """Number of this process, 0 for the first or only one."""
    return distributed.get_rank() if _several() else 0


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if _several() else 1


def from_first(compute: Callable[[], T]) -> T:
    """What the first process computes, on every process; CPU tensors arrive bit for bit.

    Raises:
        Exception: what ``compute`` raises, on every process, so that none waits for ever.
    """
    if not _several():
        return compute()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome = [compute(), None]
        except Exception as error:  # noqa: BLE001 - raised below, everywhere
            outcome = [None, error]
    distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def gather(parts: Mapping[int, T]) -> list[T]:
    """All parts of all processes, in the order of their numbers, on every process.

    Args:
        parts: number -> the result of this process; every number belongs to exactly one process.
    """
    everyone: list[Any] = [parts]
    if _several():
        everyone = [None] * world_size()
        distributed.all_gather_object(everyone, parts)
    merged = {number: part for each in everyone for number, part in each.items()}
    return [merged[number] for number in sorted(merged)]


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
