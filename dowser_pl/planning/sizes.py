"""What a memory plan is made from: sizes of the model, of the optimizer's states, and where it runs.

Legend: k trainable entries of a matrix.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Form", "Kept", "Matrix", "OptimizerKind", "Placement", "Sizes", "share_out"]

Form = Literal["dense", "compact"]

_FP32 = 4
_SHARDED = ("fsdp", "deepspeed", "modelparallel")
_OURS = ("fsdp1", "fsdp1strategy", "fsdp2", "fsdp2strategy")


@dataclass(frozen=True)
class Matrix:
    """A tuned tensor.

    Args:
        entries: of it.
        trainable: how many may move (k).
        itemsize: bytes of one entry of the weight.
    """

    entries: int
    trainable: int
    itemsize: int


@dataclass(frozen=True)
class Sizes:
    """What of a model is there and what is trained.

    Args:
        weights: dtype -> bytes of all parameters and buffers, each tensor counted once.
        matrices: the tuned ones, under a mask.
        whole: what is trained without a mask; all of it may move.
        layer_bytes: weights of the largest decoder layer, which sharded strategies gather while it runs.
    """

    weights: Mapping[str, int]
    matrices: tuple[Matrix, ...]
    whole: tuple[Matrix, ...] = ()
    layer_bytes: int = 0


@dataclass(frozen=True)
class Kept:
    """What a method that decides after every step keeps beside each tuned matrix.

    Args:
        copies: of the matrix, in its precision (the base).
        float32: tensors of its shape in float32.
    """

    copies: int = 0
    float32: int = 0


@dataclass(frozen=True)
class OptimizerKind:
    """What an optimizer keeps of a parameter.

    Args:
        name: of its class.
        states: tensors of the parameter's shape.
        itemsize: bytes of one entry of a state; None = that of the parameter.
        scalar_bytes: beside them, of each parameter (the number of its step).
        minimum: entries below which a parameter's states are float32 after all.
        block: entries that share one float32 scale in each state; 0 = none.
        table_bytes: shared by all parameters.
        copies: temporary copies of all parameters during a step; else there is one of the largest.
        known: whether these are facts; otherwise they are assumed.
    """

    name: str
    states: int
    itemsize: int | None = None
    scalar_bytes: int = 0
    minimum: int = 0
    block: int = 0
    table_bytes: int = 0
    copies: int = 0
    known: bool = True

    def state_bytes(self, entries: int, itemsize: int) -> int:
        """Of one parameter whose entries take ``itemsize`` bytes."""
        if self.block and entries < self.minimum:
            return self.states * entries * _FP32 + self.scalar_bytes
        scales = self.states * -(-entries // self.block) * _FP32 if self.block else 0
        return self.states * entries * (self.itemsize or itemsize) + scales + self.scalar_bytes


@dataclass(frozen=True)
class Placement:
    """Where it runs.

    Args:
        strategy: name of Lightning's strategy or of its class.
        devices: of all nodes.
    """

    strategy: str = "auto"
    devices: int = 1

    @property
    def spreads(self) -> bool:
        """Whether the strategy is one that spreads weights, on however many devices."""
        name = self.strategy.lower().replace("_", "")
        return any(word in name for word in _SHARDED)

    @property
    def sharded(self) -> bool:
        """Whether each device would hold a part of the weights."""
        return self.devices > 1 and self.spreads

    @property
    def ours(self) -> bool:
        """Whether it is a strategy that `fit` spreads weights with."""
        return self.strategy.lower() in _OURS

    @property
    def replicated(self) -> bool:
        """Whether every device holds everything and gradients are averaged through buffers (DDP)."""
        return self.devices > 1 and not self.sharded


def share_out(entries: Iterable[tuple[int, int]], num_trainable: int) -> tuple[Matrix, ...]:
    """Matrices that have ``num_trainable`` trainable entries together, each in proportion to its size.

    Args:
        entries: (entries, itemsize) of each matrix.
        num_trainable: of all.

    Raises:
        ValueError: if there are not so many.
    """
    pairs = list(entries)
    total = sum(count for count, _ in pairs)
    if not 0 <= num_trainable <= total:
        raise ValueError(f"got {num_trainable:,} trainable entries, expected 0 to {total:,}, all of the tuned matrices")
    matrices, seen, given = [], 0, 0
    for count, itemsize in pairs:
        seen += count
        upto = round(num_trainable * seen / total)
        matrices.append(Matrix(count, upto - given, itemsize))
        given = upto
    return tuple(matrices)
