"""What an optimizer will keep, read off its class and settings before it has made a step."""

from torch.optim import Optimizer

from dowser_pl.planning.memory import OptimizerKind

__all__ = ["ADAMW_8BIT", "optimizer_kind"]

_BLOCK = 256  # entries that share a scale in bitsandbytes' 8-bit states
_TABLE = 256 * 4  # its float32 table of the 256 values, one per state
_STEP = 4  # torch's number of the step, a float32 tensor per parameter

ADAMW_8BIT = OptimizerKind("AdamW8bit", 2, 1, minimum=4096, block=_BLOCK, table_bytes=2 * _TABLE)

# states of the parameter's shape, besides those that settings add
_TORCH = {
    "AdamW": 2,
    "Adam": 2,
    "NAdam": 2,
    "RAdam": 2,
    "Adamax": 2,
    "Adadelta": 2,
    "Rprop": 2,
    "RMSprop": 1,
    "Adagrad": 1,
    "ASGD": 1,
    "Lion": 1,
    "SGD": 0,
}
_SWITCHES = ("amsgrad", "momentum", "centered")  # each keeps one more state


def optimizer_kind(optimizer: Optimizer, on_gpu: bool = True) -> OptimizerKind:
    """What it keeps of each parameter; `known` is False where two states of float32 are assumed.

    Args:
        optimizer: over any parameters.
        on_gpu: there torch works on all parameters at once unless told otherwise, which costs a copy of them.
    """
    lineage = [each.__name__ for each in type(optimizer).__mro__]
    name = type(optimizer).__name__
    if "Optimizer8bit" in lineage:  # the base of every optimizer of bitsandbytes
        return _bitsandbytes(optimizer, lineage)
    known = next((each for each in lineage if each in _TORCH), None)
    if known is None:
        return OptimizerKind(name, 2, 4, copies=1, known=False)
    settings = optimizer.defaults
    states = _TORCH[known] + sum(bool(settings.get(switch)) for switch in _SWITCHES)
    foreach = settings.get("foreach")
    together = bool(on_gpu if foreach is None else foreach) and not settings.get("fused")
    return OptimizerKind(name, states, scalar_bytes=0 if known in ("SGD", "Lion") else _STEP, copies=int(together))


def _bitsandbytes(optimizer: Optimizer, lineage: list[str]) -> OptimizerKind:
    settings = optimizer.args  # type: ignore[attr-defined]
    states = 2 if "Optimizer2State" in lineage else 1
    tables = states
    if "AdEMAMix" in lineage:
        states = 3  # two of them in one tensor
    if settings.optim_bits != 8:
        return OptimizerKind(lineage[0], states, 4)
    return OptimizerKind(
        lineage[0], states, 1, minimum=settings.min_8bit_size, block=_BLOCK, table_bytes=tables * _TABLE
    )
