"""Dense masked training: frozen entries take no gradient and are put back after every optimizer step.

Masking the gradient alone does not freeze: weight decay moves every entry and momentum moves on after its
gradient is gone. So after each step the frozen entries are copied back from the base, bit for bit, whatever
the optimizer did. Costs one copy of the tuned matrices and one byte per entry beside them.

Legend: O outputs, I inputs of a matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dowser_pl.maths.masks import pack, unpack

__all__ = ["Changes", "FrozenEntries"]


@dataclass(frozen=True)
class Changes:
    """How many entries there are of a kind, and how many differ from the base."""

    entries: int
    changed: int


class FrozenEntries:
    """Masks of the tuned matrices, the base they protect, and the enforcement.

    Args:
        weights: run-time name -> (O, I) parameter.
        masks: name -> (O, I) bool, True = trainable; one for every weight.
        base: name -> (O, I) pretrained values, kept as they are; cloned from ``weights`` when None.

    Raises:
        ValueError: if a weight has no mask or the shapes differ; it would train unprotected.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        base: Mapping[str, Tensor] | None = None,
    ) -> None:
        for name, weight in weights.items():
            if name not in masks or masks[name].shape != weight.shape:
                found = tuple(masks[name].shape) if name in masks else "none"
                raise ValueError(f"{name} needs a mask of shape {tuple(weight.shape)}, got {found}")
        self.weights = dict(weights)
        self.masks = {name: masks[name].to(weight.device) for name, weight in weights.items()}
        self.base = dict(base) if base is not None else {n: weight.detach().clone() for n, weight in weights.items()}

    @property
    def num_trainable(self) -> int:
        """Trainable entries of all matrices."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    def mask_gradients(self) -> None:
        """Zero the gradients of frozen entries, in place (also where they are NaN)."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.masked_fill_(~self.masks[name], 0)

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the base back into every frozen entry, bit for bit."""
        for name, weight in self.weights.items():
            torch.where(self.masks[name], weight, self.base[name], out=weight.data)

    @torch.no_grad()
    def verify(self) -> tuple[Changes, Changes]:
        """Compare every entry with the base, bit by bit.

        Returns:
            (frozen, trainable) counts.
        """
        frozen, frozen_changed, trainable, trainable_changed = 0, 0, 0, 0
        for name, weight in self.weights.items():
            mask = self.masks[name]
            changed = _bits(weight.detach()) != _bits(self.base[name])
            trainable += int(mask.sum())
            trainable_changed += int((changed & mask).sum())
            frozen += int((~mask).sum())
            frozen_changed += int((changed & ~mask).sum())
        return Changes(frozen, frozen_changed), Changes(trainable, trainable_changed)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Packed masks and the base values of trainable entries, on the CPU.

        The frozen entries of a checkpoint's weights *are* the base, so the two give the whole base back.
        """
        return {name: {"mask": pack(mask), "base": self.base[name][mask].cpu()} for name, mask in self.masks.items()}

    @classmethod
    def from_state(cls, weights: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]) -> "FrozenEntries":
        """Rebuild from :meth:`state_dict` and the weights of the same checkpoint, already loaded.

        Raises:
            ValueError: if the checkpoint protects other matrices than the run tunes.
        """
        if set(weights) != set(state):
            odd = sorted(set(weights) ^ set(state))
            raise ValueError(
                f"the checkpoint has masks of {len(state)} matrices and this run tunes {len(weights)}; the first "
                f"that differs is {odd[0]!r}. Resume with the model.targets and model.last_n_layers it was made with"
            )
        masks, base = {}, {}
        for name, weight in weights.items():
            mask = unpack(state[name]["mask"], weight.shape).to(weight.device)
            values = weight.detach().clone()
            values[mask] = state[name]["base"].to(values)
            masks[name], base[name] = mask, values
        return cls(weights, masks, base)


def _bits(values: Tensor) -> Tensor:
    """The bit patterns, so that -0.0 and 0.0 differ and NaN equals itself."""
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])
