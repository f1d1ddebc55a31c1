"""What processes that hold parts of every matrix say of them together: counts, digests and states as of one process.

Entries lie on the processes in the order of their flat positions, so values, moments and masks put together in the
order of the processes are those of one process; checkpoints hold them so, and any number of processes can go on from
there. No process holds more than its share, but for one matrix at a time.
"""

from typing import ClassVar

from torch import Tensor

from dowser_pl.distributed.tensors import added, collect, digests_in_turns, local
from dowser_pl.functional.masks import pack
from dowser_pl.masking.base import Changes, Protection

__all__ = ["SpreadProtection"]


class SpreadProtection(Protection):
    """Comes before a form of protection whose weights are spread over processes, which must call all of it together."""

    together: ClassVar[bool] = True

    def verify(self) -> tuple[Changes, Changes]:
        """See :meth:`Protection.verify`; entries of all processes are counted."""
        frozen, trainable = super().verify()
        moved, changed = added([frozen.changed, trainable.changed])
        return Changes(frozen.entries, moved), Changes(trainable.entries, changed)

    def frozen_digests(self) -> dict[str, str]:
        """Name -> content hash of the frozen entries of the whole matrix."""
        parts = (
            (name, weight, local(weight).masked_fill(self.masks[name], 0)) for name, weight in self.weights.items()
        )
        return digests_in_turns(parts)

    def state_dict(self, base: bool = True) -> dict[str, dict[str, Tensor]]:
        """As of one process, whole, on the first process; elsewhere empty tensors."""
        state = {}
        for name in self.weights:
            mask = collect(self.masks[name].flatten())
            state[name] = {
                "mask": pack(mask) if len(mask) else self.packed.bits[name][:0],
                "values": collect(self.values(name)),
            }
            if base:
                state[name]["base"] = collect(self.base_values(name))
        return state
