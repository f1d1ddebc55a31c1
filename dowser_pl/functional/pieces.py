"""Matrices of which each process holds a part: what must be counted or summed over all processes."""

from typing import Protocol

from torch import Tensor

__all__ = ["ALONE", "Shards"]


class Shards(Protocol):
    """How the parts of a piece that lie on other processes are counted too."""

    def add_up(self, counts: Tensor) -> Tensor:
        """Counts summed over the processes."""

    def before(self, count: int) -> tuple[int, int]:
        """The sum of a count over the processes that hold earlier parts, and over all."""

    def beside(self, values: Tensor) -> Tensor:
        """(P, n) what all P processes have of these (n,), each in a row."""


class Alone:
    """Every piece is here as a whole."""

    def add_up(self, counts: Tensor) -> Tensor:
        """The counts."""
        return counts

    def before(self, count: int) -> tuple[int, int]:
        """Nothing lies before."""
        return 0, count

    def beside(self, values: Tensor) -> Tensor:
        """These."""
        return values[None]


ALONE = Alone()
