"""What a process hands to collectives, counted where torch dispatches them, whoever calls them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from lightning.pytorch import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_SPACES = ("c10d", "_c10d_functional", "c10d_functional")


@dataclass
class Traffic:
    """Of one process.

    Attributes:
        messages: kind of collective -> calls.
        bytes: kind of collective -> bytes of what this process contributed; of all-gathers, its own piece.
    """

    messages: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.messages + other.messages, self.bytes + other.bytes)

    def __sub__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.messages - other.messages, self.bytes - other.bytes)

    def copy(self) -> "Traffic":
        return Traffic(self.messages.copy(), self.bytes.copy())


class Counting(TorchDispatchMode):
    """Counts while it is entered: ``with Counting() as counting: ...; counting.traffic``."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in _SPACES:
            kind = _kind(func._schema.name.partition("::")[2])
            if kind is not None:
                self.traffic.messages[kind] += 1
                self.traffic.bytes[kind] += _contributed(kind, args)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def within(self, owner: Any, name: str) -> Iterator[Traffic]:
        """Traffic of all calls of ``owner.name`` as long as this is entered."""
        total, called = Traffic(), getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            begun = self.traffic.copy()
            try:
                return called(*args, **kwargs)
            finally:
                more = self.traffic - begun
                total.messages.update(more.messages)
                total.bytes.update(more.bytes)

        with patch.object(owner, name, call):
            yield total


class CountSteps(Callback):
    """Traffic of the forward and backward pass and the optimizer of each batch, while a `Counting` is entered."""

    def __init__(self, counting: Counting) -> None:
        self.counting = counting
        self.batches: list[Traffic] = []
        self._begun = Traffic()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._begun = self.counting.traffic.copy()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(self.counting.traffic - self._begun)


def _kind(name: str) -> str | None:
    """One name for the in-place, the functional and the coalesced form."""
    for kind, parts in {
        "all_reduce": ("allreduce", "all_reduce"),
        "reduce_scatter": ("reduce_scatter",),
        "all_gather": ("allgather", "all_gather"),
        "broadcast": ("broadcast",),
        "barrier": ("barrier",),
    }.items():
        if any(part in name for part in parts):
            return kind
    return None if "wait" in name else name


def _contributed(kind: str, args: Any) -> int:
    """Bytes of the inputs: the last argument that holds tensors where outputs come first, else the first."""
    if kind == "barrier":
        return 0
    held = [_nbytes(each) for each in args]
    tensors = [number for number in held if number is not None]
    if not tensors:
        return 0
    return tensors[-1] if kind in ("all_gather", "reduce_scatter") else tensors[0]


def _nbytes(value: Any) -> int | None:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, list | tuple) and value and all(isinstance(each, Tensor | list | tuple) for each in value):
        return sum(_nbytes(each) or 0 for each in value)
    return None
