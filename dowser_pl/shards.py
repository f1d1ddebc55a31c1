"""Tensors that are spread over the processes by rows (FSDP2), each process holding some of every matrix.

Rows lie on the processes in order, so flat positions do too: what the processes hold of a matrix, put together in the
order of their numbers, is the matrix. Functions that talk to other processes say so; all processes must call them.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from dowser_pl import sharding
from dowser_pl.maths.digests import digest
from dowser_pl.maths.digests import digests as digests_alone

__all__ = [
    "Ranks",
    "added",
    "broadcast",
    "collect",
    "cut",
    "device_of",
    "digests",
    "digests_in_turns",
    "generating",
    "is_spread",
    "local",
    "local_rows",
    "spread_model",
    "to_be_sent",
    "to_first",
    "whole",
]


def is_spread(tensor: Tensor) -> bool:
    """Whether this process holds some rows of it only."""
    return isinstance(tensor, DTensor)


def spread_model(model: nn.Module) -> bool:
    """Whether weights of the model are spread over processes, so that all must run it together."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes, which need not be where its weights are kept."""
    return next((_device(each) for each in model.modules() if isinstance(each, FSDPModule)), _first(model))


@contextmanager
def generating(model: nn.Module) -> Iterator[None]:
    """Keep the outermost group of weights (embeddings, head, vision tower) here while the model writes.

    ``generate`` runs parts of the model by themselves, and gathering this group again for every token would take long.
    All processes must enter and leave together.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.set_reshard_after_forward(False, recurse=False)
    model.unshard()
    try:
        yield
    finally:
        model.set_reshard_after_forward(True, recurse=False)
        model.reshard()


def local(tensor: Tensor) -> Tensor:
    """The rows that this process holds, in the memory of the tensor; all of them where it is not spread."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_rows(tensor: Tensor) -> slice:
    """Which rows these are."""
    if not isinstance(tensor, DTensor):
        return slice(0, len(tensor))
    each = -(-len(tensor) // sharding.world_size())  # as torch.chunk divides
    first = min(sharding.rank() * each, len(tensor))
    return slice(first, first + len(tensor.to_local()))


def cut(everything: Tensor, like: Tensor) -> Tensor:
    """Of a tensor that is here as a whole the rows that this process holds of ``like``."""
    return everything[local_rows(like)] if isinstance(like, DTensor) else everything


def whole(tensor: Tensor) -> Tensor:
    """All rows on every process; all must call it."""
    value: Any = tensor.detach()
    if not is_spread(value):
        return value
    return _like(value, to_be_sent(local(value))).full_tensor()  # rows in host memory cannot be sent by NCCL


def added(counts: Iterable[int]) -> list[int]:
    """Each count summed over the processes; all must call it."""
    return [int(total) for total in sharding.add_up(to_be_sent(torch.tensor(list(counts), dtype=torch.int64)))]


def broadcast(tensor: Tensor) -> Tensor:
    """What the first process has, of this shape and dtype, on every process; all must call it."""
    sent = to_be_sent(tensor.contiguous())
    distributed.broadcast(sent, 0)
    return sent


def collect(part: Tensor) -> Tensor:
    """The 1-D parts of all processes one after the other, on the first, in host memory; the others get nothing (0,).

    All processes must call it.
    """
    sent = to_be_sent(part.detach().contiguous()).view(torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64, device=sent.device) for _ in range(sharding.world_size())]
    distributed.all_gather(sizes, torch.tensor([sent.numel()], device=sent.device))
    lengths = [int(size) for size in sizes]
    padded = sent.new_zeros(max(lengths))
    padded[: sent.numel()] = sent
    parts = [torch.empty_like(padded) for _ in lengths] if sharding.rank() == 0 else None
    distributed.gather(padded, parts)
    found = [each[:length] for each, length in zip(parts or [], lengths, strict=bool(parts))]
    return torch.cat([sent[:0], *found]).cpu().view(part.dtype)


def to_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in the host memory of the first process, one at a time; elsewhere nothing. All must call it.

    Tensors of two names that are one stay one.
    """
    found: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in found:
            part = collect(local(tensor.detach()).flatten()).view(-1) if is_spread(tensor) else tensor.detach().cpu()
            found[id(tensor)] = part.view(tensor.shape) if sharding.rank() == 0 else part
    return {name: found[id(tensor)] for name, tensor in tensors.items()} if sharding.rank() == 0 else {}


def digests(tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None) -> dict[str, str]:
    """Content hash of each whole tensor, the same however it is spread, converted to ``dtypes`` first where given.

    All processes must call it.

    One tensor at a time is put together; the processes take turns in hashing, beside each other.
    """
    if not any(map(is_spread, tensors.values())):
        return digests_alone(tensors, dtypes)
    kinds = dtypes or {}
    return digests_in_turns((name, each.to(kinds.get(name, each.dtype)), None) for name, each in tensors.items())


def digests_in_turns(parts: Iterable[tuple[str, Tensor, Tensor | None]]) -> dict[str, str]:
    """Digests of tensors of which ``(name, tensor, replaced)`` says what the rows here are instead, if not None.

    A process hashes in a thread: all must come to put the next tensor together. It holds two whole ones at most.
    """
    mine: dict[int, tuple[str, Future[str]]] = {}
    hashed: list[Future[str]] = []
    with ThreadPoolExecutor(1) as pool:
        for number, (name, tensor, replaced) in enumerate(parts):
            value = whole(tensor if replaced is None else _like(tensor, replaced))
            if number % sharding.world_size() == sharding.rank():
                wait(hashed)
                hashed = [pool.submit(digest, value)]
                mine[number] = name, hashed[0]
    return dict(sharding.gather(lambda: {number: (name, found.result()) for number, (name, found) in mine.items()}))


class Ranks:
    """Counts over the processes, for a selection among rows that are spread over them."""

    def add_up(self, counts: Tensor) -> Tensor:
        """The sum over all processes."""
        device = counts.device
        return sharding.add_up(to_be_sent(counts)).to(device)

    def before(self, count: int) -> tuple[int, int]:
        """What the processes before this one counted together, and what all did."""
        counts = [0] * sharding.world_size()
        counts[sharding.rank()] = count
        totals = added(counts)
        return sum(totals[: sharding.rank()]), sum(totals)


def _like(tensor: Any, rows: Tensor) -> Any:
    if not isinstance(tensor, DTensor):
        return rows
    return DTensor.from_local(
        rows, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def to_be_sent(tensor: Tensor) -> Tensor:
    """The tensor on a device from which it can be sent to other processes."""
    on_gpu = distributed.is_initialized() and "nccl" in distributed.get_backend()
    return tensor.cuda() if on_gpu else tensor.cpu()


def _device(module: FSDPModule) -> torch.device:
    kind = module._get_fsdp_state()._device
    return torch.device(kind)


def _first(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
