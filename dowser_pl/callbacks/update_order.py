"""In which order updates are to be taken back: told while masks are decided, kept in checkpoints."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dowser_pl.distributed import collectives
from dowser_pl.distributed.ranks import Ranks
from dowser_pl.distributed.tensors import collect
from dowser_pl.functional.nesting import left_out
from dowser_pl.masking import Protection
from dowser_pl.methods import Method

__all__ = ["MasksOf", "UpdateOrder"]

MasksOf = Callable[[Method], Iterator[tuple[str, Tensor]]]
"""Name and mask of every matrix, by what was measured of the base, of a method at some update ratio."""


class UpdateOrder:
    """Groups of trainable entries, one byte each, the least important ones first.

    Attributes:
        levels: name of a matrix -> (k,) uint8, the group of each trainable entry that is here; None = not told.
        steps: all ratios at which groups end, rising, the last that of the run.
    """

    def __init__(self) -> None:
        self.levels: dict[str, Tensor] | None = None
        self.steps: list[float] = []
        self._together = False  # whether processes hold different entries

    def tell(self, method: Method, entries: Protection, masks_of: MasksOf) -> None:
        """Put the trainable entries of a fresh run into groups, while their scores can be told."""
        self._together = entries.together
        self.levels = {name: torch.zeros(int(mask.sum()), dtype=torch.uint8) for name, mask in entries.masks.items()}
        for ratio in self.steps[:-1]:
            for name, mask in masks_of(_at(method, ratio)):
                self.levels[name] += left_out(entries.masks[name], mask)

    def cut(self, entries: Protection) -> None:
        """Of the groups that a checkpoint told keep those of the entries that are here."""
        if self.levels is None or self._together or not entries.together:
            return
        self._together = True
        for name, mask in entries.masks.items():
            count = int(mask.sum())
            first, _ = Ranks().before(count)
            self.levels[name] = self.levels[name][first : first + count].clone()

    def state_dict(self) -> dict[str, Any]:
        """Groups of all entries, on the first process, whose state alone is saved."""
        if self.levels is None or (collectives.rank() > 0 and not self._together):
            return {}
        levels = {name: collect(each) for name, each in self.levels.items()} if self._together else self.levels
        return {"ratios": self.steps, "levels": levels} if collectives.rank() == 0 else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Groups of the run that is resumed: its scores cannot be told any more."""
        if state_dict:
            self.steps, self.levels = list(state_dict["ratios"]), dict(state_dict["levels"])
            self._together = False


def _at(method: Method, ratio: float) -> Method:
    """The method at another update ratio."""
    other = copy.copy(method)
    other.update_ratio = ratio
    return other
