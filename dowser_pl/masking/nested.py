"""From one sparse run the models of all smaller update ratios: updates taken back, the most important entries first.

Masks of rising ratio contain one another. What a run at the largest ratio did to an entry can therefore be taken back
to see a model in which only the masks of a smaller one moved. It is not quite the model that training at that ratio
gives, where the other entries would not have been there to lean on.

Legend: k trainable entries of a matrix.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dowser_pl.distributed.tensors import to_local
from dowser_pl.functional.masks import chosen, up_to
from dowser_pl.masking.base import Protection
from dowser_pl.masking.dense import DenseEntries
from dowser_pl.masking.sharded import frozen_of

__all__ = ["NestedUpdates"]


class NestedUpdates:
    """The tuned values of a model whose training has ended, in nested groups; costs host memory for k values.

    Args:
        entries: trained, and closed; no step may follow.
        levels: name of a matrix -> (k,) number of the group of each trainable entry, 0 = the least important one.
    """

    def __init__(self, entries: Protection, levels: Mapping[str, Tensor]) -> None:
        self._entries, self._levels = entries, levels
        self._tuned = {name: to_local(weight)[entries.masks[name]].cpu() for name, weight in entries.weights.items()}

    @torch.no_grad()
    def keep(self, level: int) -> None:
        """Write a model in which the groups up to `level` are tuned, all else is the base, bit for bit; -1 = none."""
        for name, weight in self._entries.weights.items():
            kept = chosen(self._levels[name], level)
            values = torch.where(kept, self._tuned[name], self._entries.base_values(name))
            to_local(weight).masked_scatter_(self._entries.masks[name], values.to(weight.device))

    @torch.no_grad()
    def narrowed(self, level: int) -> DenseEntries:
        """Write that model for good.

        Returns:
            The same matrices with smaller masks, base on the host: what is outside of them is frozen.
        """
        entries, masks, base = self._entries, {}, {}
        for name, weight in entries.weights.items():
            outer = entries.masks[name]
            base[name] = to_local(weight).cpu().masked_scatter(outer.cpu(), entries.base_values(name))
            masks[name] = up_to(outer, self._levels[name], level)
        self.keep(level)
        return frozen_of(entries, masks, base)
