"""Dense masked training: frozen entries take no gradient and are put back after every optimizer step.

Masking the gradient alone does not freeze: weight decay moves every entry and momentum moves on after its
gradient is gone. So after each step the frozen entries are copied back from the base, bit for bit, whatever
the optimizer did. Costs one copy of the tuned matrices and one byte per entry beside them, and dense gradients
and moments; for study, and to check the compact form against.

Legend: O outputs, I inputs of a matrix.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dowser_pl.distributed.tensors import to_local
from dowser_pl.files.digests import digest
from dowser_pl.masking.base import Changes, Protection, State, bits_of

__all__ = ["DenseEntries"]


class DenseEntries(Protection):
    """Masks of the tuned matrices, the base they protect, and the enforcement.

    Args:
        weights: run-time name -> (O, I) parameter.
        masks: name -> (O, I) bool, True = trainable; one for every weight.
        base: name -> (O, I) pretrained values, kept as they are; cloned from `weights` when None. May lie on the
            host where no step is to follow.

    Raises:
        DowserError: see `Protection`.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        masks: Mapping[str, Tensor],
        base: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(weights, masks)
        self._masks = {name: masks[name].to(weight.device) for name, weight in weights.items()}
        self.base = dict(base) if base is not None else {n: weight.detach().clone() for n, weight in weights.items()}

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks as they were given, name -> (O, I) bool."""
        return self._masks

    @property
    def num_trainable(self) -> int:
        """Trainable entries of all matrices."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    def parameters(self) -> list[nn.Parameter]:
        """The matrices themselves, which the optimizer sees whole."""
        return list(self.weights.values())

    def base_digests(self) -> dict[str, str]:
        """Name -> content hash that the frozen entries of the base have; see `frozen_digests`."""
        return {name: digest(base.masked_fill(self.masks[name].to(base.device), 0)) for name, base in self.base.items()}

    def mask_gradients(self) -> None:
        """The freeze, with `after_step`: gradients of frozen entries become zero, in place (also NaN)."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.masked_fill_(~self.masks[name], 0)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer | None = None) -> None:  # noqa: ARG002 - it looks at weights alone
        """Copy the base back into every frozen entry, bit for bit."""
        for name, weight in self.weights.items():
            torch.where(self.masks[name], weight, self.base[name], out=weight.data)

    @torch.no_grad()
    def verify(self) -> tuple[Changes, Changes]:
        """Compare every entry with the base, bit by bit.

        Returns:
            (frozen, trainable) counts.
        """
        frozen, trainable = super().verify()
        moved = 0
        for name, weight in self.weights.items():
            base = self.base[name].to(weight.device)
            moved += int(((bits_of(to_local(weight)) != bits_of(base)) & ~self.masks[name]).sum())
        return Changes(frozen.entries, moved), trainable

    def base_values(self, name: str) -> Tensor:
        """(k,) pretrained values, on the CPU."""
        return self.base[name][self.masks[name].to(self.base[name].device)].cpu()

    def values(self, name: str) -> Tensor:
        """(k,) in the precision of the weight."""
        return to_local(self.weights[name])[self.masks[name]]

    def close(self) -> None:
        """Nothing to let go of."""

    @classmethod
    def _resumed(cls, weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor], state: State) -> "DenseEntries":
        base = {}
        for name, weight in weights.items():
            values = weight.detach().clone()
            values[masks[name].to(values.device)] = state[name]["base"].to(values)
            base[name] = values
        return cls(weights, masks, base)
