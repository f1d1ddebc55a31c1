"""Tensors that are sharded over the processes, by rows (FSDP2) or by flat positions (FSDP1, `FlatShard`).

Flat positions lie on the processes in order: what the processes hold of a matrix, put together in the order of their
numbers, is the matrix. Functions that talk to other processes say so; all processes must call them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from dowser_pl.distributed import collectives
from dowser_pl.distributed.collectives import gather_to_rank_zero, to_be_sent
from dowser_pl.files.digests import digest
from dowser_pl.files.digests import digests as digests_alone

__all__ = [
    "FlatShard",
    "GradientHook",
    "all_gather_like",
    "covering",
    "digests",
    "digests_in_turns",
    "flat_range",
    "flat_shard_of",
    "full_tensor",
    "is_sharded",
    "local_rows",
    "put_flat_shard",
    "register_reduced_grad_hook",
    "shape_of",
    "shard_like",
    "to_local",
    "to_rank_zero",
    "whole_shapes",
]


@dataclass(frozen=True)
class FlatShard:
    """The places of the pieces of a tensor that is sharded by flat positions.

    Attributes:
        shape: of the whole.
        ends: flat position where the piece of each process ends; it begins where the one before ends.
        rank: of this process.
        unit: that gathers it.
    """

    shape: torch.Size
    ends: tuple[int, ...]
    rank: int
    unit: Any

    @property
    def sizes(self) -> list[int]:
        """The number of entries on each process."""
        return [end - start for start, end in zip((0, *self.ends), self.ends, strict=False)]

    @property
    def here(self) -> slice:
        """Flat positions that this process holds."""
        return slice((0, *self.ends)[self.rank], self.ends[self.rank])


def flat_shard_of(tensor: Tensor) -> FlatShard | None:
    """None for a tensor that FSDP1 does not shard, and for what is computed from one that it does."""
    return getattr(tensor, "_flat_shard", None)


def put_flat_shard(tensor: Any, shard: FlatShard | None) -> None:
    """Say what the tensor is a piece of."""
    if shard is not None:
        tensor._flat_shard = shard


@dataclass(frozen=True)
class GradientHook:
    """What is to be told of averaged gradients.

    Attributes:
        weight: whose they are.
        take: gets that weight, with the gradient of the piece that is here.
        always: whether all of the weight takes part in each backward pass.
    """

    weight: nn.Parameter
    take: Callable[[Tensor], None]
    always: bool


@contextmanager
def whole_shapes(model: nn.Module) -> Iterator[None]:
    """Within it weights have the shapes and bytes of the whole, and no values; for those who only count."""
    own = [(module, name, weight) for module in model.modules() for name, weight in module._parameters.items()]
    stand_ins: dict[int, nn.Parameter] = {}
    for _, _, weight in own:
        if weight is not None and (shard := flat_shard_of(weight)) is not None:
            empty = torch.empty(shard.shape, dtype=weight.dtype, device="meta")
            stand_ins[id(weight)] = nn.Parameter(empty, requires_grad=weight.requires_grad)
    try:
        for module, name, weight in own:
            module._parameters[name] = stand_ins.get(id(weight), weight)
        yield
    finally:
        for module, name, weight in own:
            module._parameters[name] = weight


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of it only."""
    return isinstance(tensor, DTensor) or flat_shard_of(tensor) is not None


def shape_of(tensor: Tensor) -> torch.Size:
    """The shape of the whole tensor, however it is sharded."""
    shard = flat_shard_of(tensor)
    return tensor.shape if shard is None else shard.shape


def to_local(tensor: Tensor) -> Tensor:
    """What this process holds, in the memory of the tensor: rows, or a 1-D piece; all of it where it is not sharded."""
    value = tensor.detach()
    if isinstance(value, DTensor):
        return value.to_local()
    return value if flat_shard_of(tensor) is None else value.view(-1)


def flat_range(tensor: Tensor) -> slice:
    """Which flat positions these are."""
    shard = flat_shard_of(tensor)
    if shard is not None:
        return shard.here
    rows, columns = local_rows(tensor), tensor.shape[1:].numel()
    return slice(rows.start * columns, rows.stop * columns)


def local_rows(tensor: Tensor) -> slice:
    """Which rows a process holds of a tensor that is sharded by rows."""
    if not isinstance(tensor, DTensor):
        return slice(0, len(tensor))
    each = -(-len(tensor) // collectives.world_size())  # as torch.chunk divides
    first = min(collectives.rank() * each, len(tensor))
    return slice(first, first + len(tensor.to_local()))


def covering(tensor: Tensor) -> tuple[slice, slice | None]:
    """The rows that cover what this process holds, and which flat positions of these rows it is; None = all of them."""
    if flat_shard_of(tensor) is None:
        return local_rows(tensor), None
    here, columns = flat_range(tensor), shape_of(tensor)[1:].numel()
    rows = slice(here.start // columns, -(-here.stop // columns)) if here.stop > here.start else slice(0, 0)
    first = here.start - rows.start * columns if rows.stop else 0
    return rows, slice(first, first + here.stop - here.start)


def shard_like(everything: Tensor, like: Tensor) -> Tensor:
    """Cut out of a whole tensor what this process holds of `like`."""
    if flat_shard_of(like) is not None:
        return everything.reshape(-1)[flat_range(like)]
    return everything[local_rows(like)] if isinstance(like, DTensor) else everything


def register_reduced_grad_hook(
    weight: nn.Parameter, take: Callable[[Tensor], None], always: bool = True
) -> RemovableHandle:
    """Have `take(weight)` called after each backward pass, with the averaged gradient of what is here in its grad.

    Args:
        weight: plain, or sharded over the processes.
        take: is to take the gradient away.
        always: whether the weight takes part in each backward pass; after one in which it does not, nothing is called.
    """
    shard = flat_shard_of(weight)
    if shard is None:
        return weight.register_post_accumulate_grad_hook(take)
    handle = RemovableHandle(shard.unit.gradient_hooks)
    shard.unit.gradient_hooks[handle.id] = GradientHook(weight, take, always)
    return handle


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor on every process; all must call it."""
    if not is_sharded(tensor):
        return tensor.detach()
    return all_gather_like(to_local(tensor), tensor)


def to_rank_zero(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in the host memory of the first process, one at a time; elsewhere nothing. All must call it.

    Tensors of two names that are one stay one.
    """
    found: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in found:
            part = (
                gather_to_rank_zero(to_local(tensor).flatten()).view(-1)
                if is_sharded(tensor)
                else tensor.detach().cpu()
            )
            found[id(tensor)] = part.view(shape_of(tensor)) if collectives.rank() == 0 else part
    return {name: found[id(tensor)] for name, tensor in tensors.items()} if collectives.rank() == 0 else {}


def digests(tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None) -> dict[str, str]:
    """Content hash of each whole tensor, the same however it is sharded, converted to `dtypes` first where given.

    All processes must call it.

    One tensor at a time is put together; the processes take turns in hashing, beside each other.
    """
    if not any(map(is_sharded, tensors.values())):
        return digests_alone(tensors, dtypes)
    kinds = dtypes or {}
    return digests_in_turns(
        (name, each, to_local(each).to(kinds.get(name, each.dtype))) for name, each in tensors.items()
    )


def digests_in_turns(parts: Iterable[tuple[str, Tensor, Tensor | None]]) -> dict[str, str]:
    """Digests of tensors of which `(name, tensor, replaced)` says what the part here is instead, if not None.

    A process hashes in a thread: all must come to put the next tensor together. It holds two whole ones at most.
    """
    mine: dict[int, tuple[str, Future[str]]] = {}
    hashed: list[Future[str]] = []
    with ThreadPoolExecutor(1) as pool:
        for number, (name, tensor, replaced) in enumerate(parts):
            value = full_tensor(tensor) if replaced is None else all_gather_like(replaced, tensor)
            if number % collectives.world_size() == collectives.rank():
                wait(hashed)
                hashed = [pool.submit(digest, value)]
                mine[number] = name, hashed[0]
    return dict(
        collectives.all_gather_numbered(
            lambda: {number: (name, found.result()) for number, (name, found) in mine.items()}
        )
    )


def all_gather_like(part: Tensor, like: Any) -> Tensor:
    """The parts of all processes as one tensor, on every process, where `like` is sharded; all must call it.

    Args:
        part: of what this process holds of `like`, in its shape.
        like: a weight.
    """
    sent, shard = to_be_sent(part), flat_shard_of(like)  # what lies in host memory cannot be sent by NCCL
    if shard is not None:
        return _joined(sent, shard)
    if not isinstance(like, DTensor):
        return part
    options: Any = {"run_check": False, "shape": like.shape, "stride": like.stride()}
    return DTensor.from_local(sent, like.device_mesh, like.placements, **options).full_tensor()


def _joined(part: Tensor, shard: FlatShard) -> Tensor:
    padded = part.new_zeros(max(shard.sizes))
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in shard.sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([each[:size] for each, size in zip(parts, shard.sizes, strict=True)]).view(shard.shape)
