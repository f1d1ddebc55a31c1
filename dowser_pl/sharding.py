"""Work split over the processes of a run, and its results put together again in order.

What fails on one process fails on all, with that process' message, so that none waits for ever. Everything here only
calls what it is given when there is one process.
"""

import pickle
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
        Exception: what ``compute`` raises, on every process.
    """
    if not _several():
        return compute()
    outcome: list[Any] = list(_attempt(compute)) if rank() == 0 else [None, None]
    distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def gather(compute: Callable[[], Mapping[int, T]]) -> list[T]:
    """The numbered parts that the processes compute, in the order of their numbers, on every process.

    Args:
        compute: gives this process' parts by number; parts of the same number must be equal.

    Raises:
        Exception: what ``compute`` raises on the first process where it raises, on every process.
    """
    outcomes: list[Any] = [(compute(), None)] if not _several() else [None] * world_size()
    if _several():
        distributed.all_gather_object(outcomes, _attempt(compute))
    for _, error in outcomes:
        if error is not None:
            raise error
    merged = {number: part for parts, _ in outcomes for number, part in parts.items()}
    return [merged[number] for number in sorted(merged)]


def _attempt(compute: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return compute(), None
    except Exception as error:  # noqa: BLE001 - raised again, on every process
        try:
            pickle.dumps(error)
        except Exception:  # noqa: BLE001 - some errors hold what cannot be sent
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
