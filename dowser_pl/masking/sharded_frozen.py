"""What stayed frozen in matrices that are spread over processes, once a decision after training has made it known."""

from collections.abc import Mapping

from torch import Tensor, nn

from dowser_pl.distributed.tensors import added, digests_in_turns
from dowser_pl.masking.base import Protection
from dowser_pl.masking.dense import FrozenEntries
from dowser_pl.masking.spread_protection import SpreadProtection

__all__ = ["ShardedFrozen", "frozen_of"]


class ShardedFrozen(SpreadProtection, FrozenEntries):
    """As :class:`FrozenEntries`, of what this process holds; all processes must make it together.

    Args:
        weights: run-time name -> parameter that is spread over the processes.
        masks: name -> bool of what is here, in its shape.
        base: name -> pretrained values of what is here, in its shape.
    """

    def __init__(
        self, weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor], base: Mapping[str, Tensor]
    ) -> None:
        super().__init__(weights, masks, base)
        self._total = added([super().num_trainable])[0]

    @property
    def num_trainable(self) -> int:
        """Trainable entries of all matrices, on all processes."""
        return self._total

    def base_digests(self) -> dict[str, str]:
        """Name -> content hash that the frozen entries of the base have."""
        return digests_in_turns(
            (name, self.weights[name], base.masked_fill(self.masks[name].to(base.device), 0))
            for name, base in self.base.items()
        )


def frozen_of(trained: Protection, masks: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> FrozenEntries:
    """What stays frozen of matrices that were trained, by masks that are known only now.

    Args:
        trained: closed; whole or spread over processes.
        masks: name -> (O, I) bool, of what is here.
        base: name -> (O, I) pretrained values of what is here, on the host.
    """
    return (ShardedFrozen if trained.together else FrozenEntries)(trained.weights, masks, base)
