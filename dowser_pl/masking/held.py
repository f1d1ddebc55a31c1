"""Adapters that begin in a part of their matrix, which so stays what it was: what is trained, and what is held.

    h -> W h + s (B A - B0 A0) h = (W - s B0 A0) h + s B A h

is W at first, where B = B0 and A = A0. Those who describe such adapters write W - s B0 A0 over W. Here W stays as it
is, and an adapter of twice the rank has both,

    [B, -B0] [A; A0],

of which the second halves are held: they get no gradient, and after each step of any optimizer they are what they
were, to the bit. So the adapter is an ordinary one of the base that everybody has, also where that is quantized.

Legend: O outputs, I inputs of an A or B, k = O * I.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dowser_pl.functional.masks import PackedMasks
from dowser_pl.masking.base import Changes, State, bits_of
from dowser_pl.masking.compact import CompactEntries

__all__ = ["HeldEntries"]


class HeldEntries(CompactEntries):
    """The first rows or columns of the given matrices are trained, the rest is held as it is given.

    Checkpoints have all of it, as of matrices that are trained whole.

    Args:
        weights: run-time name -> (O, I) parameter that takes a gradient, whole on each process.
        starts: name -> (O, I) what it holds from now on.
        trained: name -> (axis, count): that so many of the first rows (0) or columns (1) are trained.

    Raises:
        DowserError: see `CompactEntries`.
    """

    def __init__(
        self, weights: Mapping[str, nn.Parameter], starts: Mapping[str, Tensor], trained: Mapping[str, tuple[int, int]]
    ) -> None:
        self._trained = dict(trained)
        super().__init__(weights, PackedMasks.of((n, torch.ones_like(w, dtype=torch.bool)) for n, w in weights.items()))
        for name, start in starts.items():
            self._values[name].data.copy_(start.reshape(-1))
        self._kept = {name: self._rest(name, self._values[name].detach()).clone() for name in weights}
        self._write_back()

    @property
    def num_trainable(self) -> int:
        """Entries that are not held, of all matrices."""
        return super().num_trainable - sum(kept.numel() for kept in self._kept.values())

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer | None = None) -> None:
        """Put what is held back, whatever the optimizer did to it (weight decay), and write into the matrices."""
        for name, kept in self._kept.items():
            self._rest(name, self._values[name].detach()).copy_(kept)
        super().after_step(optimizer)

    def verify(self) -> tuple[Changes, Changes]:
        """Count what changed; see `CompactEntries`. What is held is compared with what it was given."""
        super().verify()
        held = changed = 0
        for name, weight in self.weights.items():
            kept = self._kept[name].to(weight.dtype)
            held += int((bits_of(self._rest(name, weight.detach())) != bits_of(kept)).sum())
            base = self._first(name, self.base_values(name)).to(weight.device)
            changed += int((bits_of(self._first(name, weight.detach())) != bits_of(base)).sum())
        number = sum(kept.numel() for kept in self._kept.values())
        return Changes(number, held), Changes(self.num_trainable, changed)

    def num_bytes(self) -> dict[str, int]:
        """Memory by kind; what is `held` is on the device."""
        return super().num_bytes() | {"held": sum(kept.nbytes for kept in self._kept.values())}

    @classmethod
    def resumed(
        cls, weights: Mapping[str, nn.Parameter], trained: Mapping[str, tuple[int, int]], state: State
    ) -> "HeldEntries":
        """Rebuild from `state_dict` and the tuned weights of the same checkpoint, already loaded.

        Raises:
            DowserError: if the checkpoint is of other matrices.
        """
        cls.check_names(weights, state)
        entries = cls(weights, {name: state[name]["values"] for name in weights}, trained)
        entries._restore(state)
        return entries

    def _gather_gradient(self, name: str) -> Callable[[Tensor], None]:
        """As `CompactEntries`, and what is held gets none, so that clipping does not see any."""
        gather, values = super()._gather_gradient(name), self._values[name]

        @torch.no_grad()
        def hook(weight: Tensor) -> None:
            gather(weight)
            gradient: Any = values.grad
            self._rest(name, gradient).zero_()

        return hook

    def _first(self, name: str, flat: Tensor) -> Tensor:
        """A view of what is trained."""
        axis, count = self._trained[name]
        return flat.view(self.weights[name].shape).narrow(axis, 0, count)

    def _rest(self, name: str, flat: Tensor) -> Tensor:
        """A view of what is held."""
        (axis, count), shape = self._trained[name], self.weights[name].shape
        return flat.view(shape).narrow(axis, count, shape[axis] - count)
