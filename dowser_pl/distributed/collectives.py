"""Work split over the processes of a run, and its results put together again in order.

What fails on one process fails on all, with that process' message, so that none waits for ever. Functions only call
what they are given when there is one process. `DistributedReducer` is what a selection or a statistic asks of a
matrix whose parts lie on several processes.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from dowser_pl.errors import DowserError, FileError, MissingFileError

__all__ = [
    "DistributedReducer",
    "all_gather_numbered",
    "all_reduce",
    "all_reduce_counts",
    "broadcast",
    "check_same",
    "from_rank_zero",
    "gather_to_rank_zero",
    "of_first",
    "rank",
    "to_be_sent",
    "world_size",
]


T = TypeVar("T")


def rank() -> int:
    """Number of this process, 0 for the first or only one."""
    return distributed.get_rank() if _several() else 0


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if _several() else 1


def all_reduce(value: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if _several():
        distributed.all_reduce(value)
    return value


def check_same(value: str, what: str) -> None:
    """Refuse to go on where a process differs from the first.

    Raises:
        DowserError: on every process, naming one that does.
    """
    if not _several():
        return
    values = all_gather_numbered(lambda: {rank(): value})
    odd = next((number for number, other in enumerate(values) if other != values[0]), None)
    if odd is not None:
        raise DowserError(
            f"process {odd} has other {what} than the first: got {values[odd]}, expected {values[0]}. Let all read the "
            "same files"
        )


def from_rank_zero(compute: Callable[[], T]) -> T:
    """What the first process computes, on every process; CPU tensors arrive bit for bit.

    Raises:
        Exception: what `compute` raises, on every process.
    """
    if not _several():
        return compute()
    value, error = _attempt(compute) if rank() == 0 else (None, None)
    outcome: list[Any] = [value, _sendable(error)]
    distributed.broadcast_object_list(outcome)
    first: Exception | None = error or outcome[1]
    if first is not None:
        raise first
    return outcome[0]


def all_gather_numbered(compute: Callable[[], Mapping[int, T]]) -> list[T]:
    """The numbered parts that the processes compute, in the order of their numbers, on every process.

    Args:
        compute: gives this process' parts by number; parts of the same number must be equal.

    Raises:
        Exception: what `compute` raises on the first process where it raises, on every process.
    """
    if not _several():
        parts = compute()
        return [parts[number] for number in sorted(parts)]
    mine, error = _attempt(compute)
    outcomes: list[Any] = [None] * world_size()
    distributed.all_gather_object(outcomes, (mine, _sendable(error)))
    first: Exception | None = error or next((other for _, other in outcomes if other is not None), None)
    if first is not None:
        raise first
    merged = {number: part for parts, _ in outcomes for number, part in parts.items()}
    return [merged[number] for number in sorted(merged)]


def _attempt(compute: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return compute(), None
    except Exception as error:  # noqa: BLE001 - raised on every process, once all have heard of it
        return None, error


def _sendable(error: Exception | None) -> Exception | None:
    """What other processes raise, ours as ours: errors of other kinds may hold what cannot be sent or built again."""
    if error is None or type(error) in (DowserError, FileError, MissingFileError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)  # of the kind that belongs to the number
    kind = next((kind for kind in (DowserError, ValueError, OSError) if isinstance(error, kind)), None)
    return RuntimeError(f"{type(error).__name__}: {error}") if kind is None else kind(str(error))


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def all_reduce_counts(counts: Iterable[int]) -> list[int]:
    """Each count summed over the processes; all must call it."""
    return [int(total) for total in all_reduce(to_be_sent(torch.tensor(list(counts), dtype=torch.int64)))]


def broadcast(tensor: Tensor) -> Tensor:
    """What the first process has, of this shape and dtype, on every process; all must call it."""
    sent = to_be_sent(tensor.contiguous())
    distributed.broadcast(sent, 0)
    return sent


def of_first(tensor: Tensor) -> Tensor:
    """What the first process has, of this shape and dtype, on the device of this one; all must call it."""
    return broadcast(tensor).to(tensor.device) if _several() else tensor


def gather_to_rank_zero(part: Tensor) -> Tensor:
    """The 1-D parts of all processes one after the other, on the first, in host memory; the others get nothing (0,).

    All processes must call it.
    """
    sent = to_be_sent(part.detach().contiguous()).view(torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64, device=sent.device) for _ in range(world_size())]
    distributed.all_gather(sizes, torch.tensor([sent.numel()], device=sent.device))
    lengths = [int(size) for size in sizes]
    padded = sent.new_zeros(max(lengths))
    padded[: sent.numel()] = sent
    parts = [torch.empty_like(padded) for _ in lengths] if rank() == 0 else None
    distributed.gather(padded, parts)
    found = [each[:length] for each, length in zip(parts or [], lengths, strict=bool(parts))]
    return torch.cat([sent[:0], *found]).cpu().view(part.dtype)


def to_be_sent(tensor: Tensor) -> Tensor:
    """The tensor on a device from which it can be sent to other processes."""
    on_gpu = distributed.is_initialized() and "nccl" in distributed.get_backend()
    return tensor.cuda() if on_gpu else tensor.cpu()


class DistributedReducer:
    """Counts and sums over the processes, for what concerns a matrix of which each holds a part."""

    def all_reduce(self, counts: Tensor) -> Tensor:
        """The sum over all processes."""
        device = counts.device
        return all_reduce(to_be_sent(counts)).to(device)

    def exclusive_sum(self, count: int) -> tuple[int, int]:
        """What the processes before this one counted together, and what all did."""
        counts = [0] * world_size()
        counts[rank()] = count
        totals = all_reduce_counts(counts)
        return sum(totals[: rank()]), sum(totals)

    def all_gather(self, values: Tensor) -> Tensor:
        """(P, n) what all P processes have of these (n,), each in a row."""
        rows = values.new_zeros(world_size(), len(values))
        rows[rank()] = values
        return self.all_reduce(rows)
