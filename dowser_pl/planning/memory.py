"""How many bytes a training run holds, by kind, from sizes alone: nothing is allocated.

What is exact: weights, entries, indices, moments, masks, base, and gradients as far as a backward pass makes them in
the order of the model, last to first. Activations are an estimate (`activations.py`), and what a sharded
strategy would take is a forecast.

Legend: k trainable entries of a matrix; N devices.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dowser_pl.errors import DowserError

__all__ = ["Form", "Held", "Kept", "Matrix", "OptimizerKind", "Placement", "Sizes", "bytes_held", "share_out"]


Form = Literal["compact", "dense"]

_SHARDED = ("fsdp", "deepspeed", "modelparallel")
_OURS = ("fsdp1", "fsdp1strategy", "fsdp2", "fsdp2strategy")

_FP32 = 4


@dataclass(frozen=True)
class Matrix:
    """The sizes of one tuned tensor.

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
        weights: dtype -> bytes of all parameters and buffers, each tensor counted once; `packed` = matrices of 4 or 8
            bits an entry, with the scales that unpack them.
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
        apart: entries of which what the optimizer trains is not what the matrix holds: it takes memory of its own also
            where the matrix is float32 as well, and a checkpoint has both.
        shared: bytes beside all matrices, the same on every device.
        reads: whether matrices hold the base while it reads a batch: what they held is kept where it is nowhere else.
    """

    copies: int = 0
    float32: int = 0
    apart: int = 0
    shared: int = 0
    reads: bool = False


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
        """The bytes of the states of one parameter whose entries take `itemsize` bytes."""
        if self.block and entries < self.minimum:
            return self.states * entries * _FP32 + self.scalar_bytes
        scales = self.states * -(-entries // self.block) * _FP32 if self.block else 0
        return self.states * entries * (self.itemsize or itemsize) + scales + self.scalar_bytes


@dataclass(frozen=True)
class Placement:
    """Where a run takes place: devices, strategy, precision.

    Args:
        strategy: name of Lightning's strategy or of its class.
        devices: of all nodes.
    """

    strategy: str = "auto"
    devices: int = 1

    @property
    def shards(self) -> bool:
        """Whether the strategy is one that shards weights, on however many devices.

        By its name, Lightning's own included: `plan` counts for devices that are not here, where none can be made.
        """
        name = self.strategy.lower().replace("_", "")
        return any(word in name for word in _SHARDED)

    @property
    def sharded(self) -> bool:
        """Whether each device would hold a part of the weights."""
        return self.devices > 1 and self.shards

    @property
    def ours(self) -> bool:
        """Whether it is a strategy that `fit` shards weights with."""
        return self.strategy.lower() in _OURS

    @property
    def replicated(self) -> bool:
        """Whether every device holds everything and gradients are averaged through buffers (DDP)."""
        return self.devices > 1 and not self.sharded


def share_out(entries: Iterable[tuple[int, int]], num_trainable: int) -> tuple[Matrix, ...]:
    """Matrices that have `num_trainable` trainable entries together, each in proportion to its size.

    Args:
        entries: (entries, itemsize) of each matrix.
        num_trainable: of all.

    Raises:
        DowserError: if there are not so many.
    """
    pairs = list(entries)
    total = sum(count for count, _ in pairs)
    if not 0 <= num_trainable <= total:
        raise DowserError(
            f"got {num_trainable:,} trainable entries, expected 0 to {total:,}, all of the tuned matrices"
        )
    matrices, seen, given = [], 0, 0
    for count, itemsize in pairs:
        seen += count
        upto = round(num_trainable * seen / total)
        matrices.append(Matrix(count, upto - given, itemsize))
        given = upto
    return tuple(matrices)


_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Held:
    """Bytes by kind, of one device at the peak of a step.

    Args:
        weights: parameters and buffers.
        entries: float32 values of the trainable entries (compact).
        indices: where they sit (compact).
        gradients: at their peak.
        moments: states of the optimizer.
        masks: a byte per entry (dense).
        base: a copy of the tuned matrices (dense, and methods that decide after every step).
        kept: what such methods keep beside it.
        buckets: buffers of DDP, as large as the gradients of all that takes one (dense; compact leaves them out).
        gathered: one decoder layer of a sharded model.
        activations: an estimate; 0 = not known.
        workspace: temporaries when activations are gone: of the optimizer's step, or of what reads the base.
        host: in host memory: packed masks, base values of the trainable entries (compact, unless on the device), and
            what was trained at the best validation so far, where that is kept.
    """

    weights: int
    entries: int
    indices: int
    gradients: int
    moments: int
    masks: int
    base: int
    kept: int
    buckets: int
    gathered: int
    activations: int
    workspace: int
    host: int

    @property
    def kinds(self) -> dict[str, int]:
        """The kinds that lie on the device, in order."""
        return {kind: value for kind, value in vars(self).items() if kind != "host"}

    @property
    def total(self) -> int:
        """The bytes of the device: activations and workspace are never held at once."""
        return sum(self.kinds.values()) - min(self.activations, self.workspace)


def bytes_held(
    sizes: Sizes,
    form: Form,
    optimizer: OptimizerKind,
    placement: Placement = Placement(),
    activations: int = 0,
    kept: Kept = Kept(),
    best: bool = False,
) -> Held:
    """Bytes by kind on each device.

    Args:
        sizes: of the model.
        form: `dense`, whole matrices and frozen entries put back, or `compact`, trainable entries alone.
        optimizer: what it keeps.
        placement: devices and strategy.
        activations: bytes of one batch.
        kept: by the method, beside each matrix.
        best: whether what was trained at the best validation so far is kept.
    """
    compact = form == "compact"
    matrices, whole = sizes.matrices, sizes.whole
    if compact:
        trained = [(each.trainable, _FP32) for each in matrices]
    else:
        trained = [(each.entries, each.itemsize) for each in matrices]
    trained += [(each.entries, each.itemsize) for each in whole]
    copies = [count * itemsize for count, itemsize in trained]
    of_whole = sum(each.entries * each.itemsize for each in whole)
    of_matrices = sum(each.entries * each.itemsize for each in matrices)
    parts = placement.devices if placement.sharded else 1
    stepping = optimizer.copies * sum(copies) if optimizer.copies else max(copies, default=0)
    reading = sum(_aside(each, compact, kept) for each in matrices) if kept.reads else 0

    def split(total: int) -> int:
        return -(-total // parts)

    return Held(
        weights=split(sum(sizes.weights.values())),
        entries=split(sum(map(_values, matrices)) + _apart(matrices, kept)) if compact else 0,
        indices=split(sum(_indices(each) for each in matrices)) if compact else 0,
        gradients=split(_compact_gradients(matrices) if compact else of_matrices) + split(of_whole),
        moments=split(sum(optimizer.state_bytes(*each) for each in trained)) + optimizer.table_bytes,
        masks=0 if compact else split(sum(each.entries for each in matrices)),
        base=split(kept.copies * of_matrices if compact else of_matrices),
        kept=split(kept.float32 * _FP32 * sum(each.entries for each in matrices)) + kept.shared,
        buckets=of_matrices + of_whole if placement.replicated and not compact else 0,
        gathered=sizes.layer_bytes if placement.sharded else 0,
        activations=activations,
        workspace=max(split(stepping) if optimizer.copies else stepping, reading),
        host=split(sum(_host(each, compact and not kept.copies) for each in matrices))
        + (sum(each.trainable * (_FP32 if compact else each.itemsize) for each in matrices) + of_whole) * best,
    )


def _values(matrix: Matrix) -> int:
    """Where all entries are trainable in float32, values and weight share memory."""
    shared = matrix.trainable == matrix.entries and matrix.itemsize == _FP32
    return 0 if shared else matrix.trainable * _FP32


def _aside(matrix: Matrix, compact: bool, kept: Kept) -> int:
    """What of a matrix that holds the base has to be kept; values of their own give the rest again."""
    if compact and (_values(matrix) or kept.apart):
        return 0
    return matrix.trainable * matrix.itemsize


def _apart(matrices: Sequence[Matrix], kept: Kept) -> int:
    """Of those that would share memory and cannot."""
    return _FP32 * kept.apart if matrices and all(each.itemsize == _FP32 for each in matrices) else 0


def _host(matrix: Matrix, compact: bool) -> int:
    return -(-matrix.entries // 8) + (matrix.trainable * matrix.itemsize if compact else 0)


def _indices(matrix: Matrix) -> int:
    if matrix.trainable == matrix.entries:
        return 0
    return matrix.trainable * (4 if matrix.entries <= _INT32_MAX else 8)


def _compact_gradients(matrices: Sequence[Matrix]) -> int:
    """The peak of a backward pass, last matrix to first: each whole gradient lives until its entries are gathered."""
    gathered = peak = 0
    for each in reversed(matrices):
        gathered += each.trainable * _FP32
        shared = each.trainable == each.entries and each.itemsize == _FP32
        peak = max(peak, gathered + (0 if shared else each.entries * each.itemsize))
    return peak
