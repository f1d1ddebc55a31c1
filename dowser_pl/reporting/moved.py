"""Where a tuned model differs from its base: how far each matrix moved, and how far each layer's output drifted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["MatrixMove", "Moved", "moved_text"]


@dataclass(frozen=True)
class MatrixMove:
    """How far one matrix of the decoder moved.

    Attributes:
        name: at run time.
        layer: of the decoder, from 0.
        kind: its name within the layer, such as `mlp.up_proj`.
        size: of the change beside that of the matrix, ||W - W0||_F / ||W0||_F; 1 where a matrix of zeros changed.
        share: of its entries that differ from the base, 0 to 1.
    """

    name: str
    layer: int
    kind: str
    size: float
    share: float


@dataclass(frozen=True)
class Moved:
    """Where a tuned model differs from its base.

    Attributes:
        matrices: of the decoder, in model order.
        drift: ||x - x0||_F / ||x0||_F of what each decoder layer hands on, first to last, on rows of the base.
    """

    matrices: Sequence[MatrixMove]
    drift: Sequence[float]

    @property
    def kinds(self) -> list[str]:
        """The names of matrices within a layer, in model order."""
        return list(dict.fromkeys(each.kind for each in self.matrices))

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values, ready for JSON."""
        return {"matrices": [asdict(each) for each in self.matrices], "drift": list(self.drift)}


def moved_text(moved: Moved) -> str:
    """The extremes in one line: the matrix that moved furthest, and the layer whose output drifted most."""
    most = max(moved.matrices, key=lambda each: each.size)
    furthest = max(range(len(moved.drift)), key=lambda layer: moved.drift[layer])
    where = f"{most.kind} of layer {most.layer} (by {most.size:.2g} of its size)"
    first = f"moved most: {where}" if most.size else "no matrix of the decoder moved"
    if not moved.drift[furthest]:
        return first
    return f"{first}; drifted most: the output of layer {furthest} (by {moved.drift[furthest]:.2g})"
