"""Whole matrices under a rule, of which each process holds and trains a part.

What a rule asks of a whole matrix, as the deviation of its entries, it asks through ``shards``; nothing but such
numbers is exchanged beside the gradients. The sums of gradients and what the rule made of the base lie where the
entries lie, and checkpoints hold them as one process would.
"""

from typing import ClassVar

from torch import Tensor

from dowser_pl.distributed.ranks import Ranks
from dowser_pl.distributed.tensors import collect, shape_of
from dowser_pl.functional.pieces import Shards
from dowser_pl.masking.sharded import ShardedEntries
from dowser_pl.masking.soft import SoftEntries
from dowser_pl.masking.spread_protection import SpreadProtection

__all__ = ["ShardedSoftEntries"]


class ShardedSoftEntries(SoftEntries, ShardedEntries):
    """As :class:`SoftEntries`, of what this process holds; see :class:`ShardedEntries` for what all must call.

    Args:
        weights: run-time name -> parameter that is spread over the processes.
        rule: applied to what is here of each matrix, by all processes together.
        priors: name -> float32 of what is here, in its shape; may lack names.
    """

    shards: ClassVar[Shards] = Ranks()

    def state_dict(self, base: bool = True) -> dict[str, dict[str, Tensor]]:
        """As of one process, whole, on the first process; elsewhere empty tensors."""
        state = SpreadProtection.state_dict(self, base)
        for name, weight in self.weights.items():
            for kind, kept in self.beside(name).items():
                every = collect(kept.flatten())
                state[name][kind] = every.view(shape_of(weight)) if len(every) else every
        return state
