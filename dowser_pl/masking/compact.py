"""Trainable entries as a parameter: gradients, moments and checkpoints are as small as what is trained.

Of each matrix the k trainable values form a 1-D float32 parameter, and the optimizer knows nothing else. When the
backward pass has filled the gradient of a matrix, its k entries are gathered and the rest is dropped at once, so
no more than one dense gradient exists; after each step the values are written back. Frozen entries are never
written: they keep their bits under any optimizer, weight decay and precision. The float32 values beside half
precision weights keep updates too small for the weight's own precision.

Bytes per matrix entry at update ratio 0.1 with Adam: 0.4 values + 0.4 indices + 0.4 gradient + 0.8 moments, where
dense masked training takes 4 gradient + 8 moments + 1 mask + 4 base in float32.

Legend: O outputs, I inputs of a matrix, k trainable entries of it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dowser_pl.distributed.tensors import register_reduced_grad_hook, to_local
from dowser_pl.errors import DowserError
from dowser_pl.masking.base import Changes, Protection, State, bits_of

__all__ = ["CompactEntries"]


class CompactEntries(Protection):
    """Masks of the tuned matrices in the form of indices and values.

    A matrix whose entries are all trainable needs no indices; in float32 its values share its memory.

    Args:
        weights: run-time name -> (O, I) parameter that takes a gradient.
        masks: name -> (O, I) bool, True = trainable.

    Raises:
        DowserError: see `Protection`; also if a weight is not contiguous or takes no gradient.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        super().__init__(weights, masks)
        for name, weight in weights.items():
            here = to_local(weight)
            if not (here.is_contiguous() and weight.requires_grad):
                raise DowserError(
                    f"{name} must be contiguous and take a gradient: got strides {here.stride()} and requires_grad "
                    f"{weight.requires_grad}"
                )
            weight.grad = None  # of a run that was stopped
        self._indices = {name: _indices(masks[name], weight.device) for name, weight in weights.items()}
        self._values = {name: nn.Parameter(self._gathered(name).float()) for name in weights}
        self._base = {name: self._keep_base(name) for name in weights}
        self._totals = self._counted({name: values.numel() for name, values in self._values.items()})
        self._idle = [weight for name, weight in weights.items() if not self._totals[name]]
        for weight in self._idle:
            weight.requires_grad_(False)
        self._hooks: list[Any] = [
            register_reduced_grad_hook(weight, self._gather_gradient(name))
            for name, weight in weights.items()
            if weight.requires_grad
        ]

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Unpacked each time one is asked for."""
        return self.packed

    @property
    def num_trainable(self) -> int:
        """Trainable entries of all matrices."""
        return sum(self._totals.values())

    def parameters(self) -> list[nn.Parameter]:
        """(k,) float32 values of each matrix that has any."""
        return [values for name, values in self._values.items() if self._totals[name]]

    def mask_gradients(self) -> None:
        """Nothing is left to mask: `_gather_gradient` kept the k allowed entries of each gradient as it came.

        That is checked. Afterwards no matrix has a gradient, and the optimizer, which knows k values of each, has never
        seen one of a frozen entry.

        Raises:
            DowserError: if a matrix has a gradient that did not come by that way.
        """
        odd = [name for name, weight in self.weights.items() if weight.grad is not None]
        if odd:
            raise DowserError(
                f"got a gradient of all entries of {odd[0]} ({len(odd)} of {len(self.weights)} matrices), expected it "
                "to be gathered and dropped in the backward pass: another callback or hook has set it. Fix: remove "
                "that, or let it work on the gradients of dowser.entries.parameters()"
            )

    def after_step(self, optimizer: Optimizer | None = None) -> None:  # noqa: ARG002 - it looks at weights alone
        """Write the values back into the matrices, rounded to their precision."""
        self._write_back()

    @torch.no_grad()
    def _write_back(self) -> None:
        for name in self.weights:
            self._write(name)

    def _write(self, name: str) -> None:
        """Write the values of one matrix back."""
        if not self._shares(name, self.weights[name]):
            self._put(name, self._values[name])

    def _put(self, name: str, values: Tensor) -> None:
        """Write (k,) values into the trainable entries of a matrix."""
        indices, here = self._indices[name], to_local(self.weights[name])
        if indices is None:
            here.copy_(values.view_as(here))
        else:
            here.view(-1).index_copy_(0, indices.long(), values.to(here))

    def base_values(self, name: str) -> Tensor:
        """(k,) pretrained values, in host memory."""
        return self._base[name]

    def values(self, name: str) -> Tensor:
        """The trained values of a matrix' entries, (k,) float32."""
        return self._values[name]

    def copies(self) -> dict[str, Tensor]:
        """Name -> what the optimizer moves, where that is not what the matrix holds; see `Protection.copies`."""
        return {name: values.detach().to("cpu", copy=True) for name, values in self._values.items()}

    @torch.no_grad()
    def go_back(self, copies: Mapping[str, Tensor]) -> None:
        """Take values over that `copies` gave earlier in training, and write them into the matrices."""
        for name, values in copies.items():
            self._values[name].copy_(values)
        self._write_back()

    def close(self) -> None:
        """Remove the hooks; the optimizer must not be stepped any more."""
        for hook in self._hooks:
            hook.remove()
        for weight in self._idle:
            weight.requires_grad_(True)

    def verify(self) -> tuple[Changes, Changes]:
        """Count what changed; see `Protection.verify`.

        Raises:
            RuntimeError: if a matrix does not hold the values that were trained.
        """
        for name, weight in self.weights.items():
            if not torch.equal(bits_of(self._gathered(name)), bits_of(self.values(name).detach().to(weight.dtype))):
                raise RuntimeError(
                    f"{name} does not hold the values that were trained: another callback writes weights. Train "
                    "without it, or with --dowser.update dense and --dowser.checkpoint full"
                )
        return super().verify()

    def num_bytes(self) -> dict[str, int]:
        """Memory by kind, on the device (`indices`, `values`) and on the host (`base`)."""
        indices = [each for each in self._indices.values() if each is not None]
        own: list[Tensor] = [
            self._values[name] for name, weight in self.weights.items() if not self._shares(name, weight)
        ]
        kinds: dict[str, list[Tensor]] = {"indices": indices, "values": own, "base": list(self._base.values())}
        return {kind: sum(tensor.nbytes for tensor in tensors) for kind, tensors in kinds.items()}

    @classmethod
    def _resumed(
        cls, weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor], state: State
    ) -> "CompactEntries":
        entries = cls(weights, masks)
        entries._restore(state)
        return entries

    def _restore(self, state: State) -> None:
        for name, weight in self.weights.items():
            base = self._base[name]
            self._base[name] = state[name]["base"].to(base.device, weight.dtype)
            self._values[name].data.copy_(state[name]["values"])
        self._write_back()  # weights that were loaded in another precision held rounded values

    def _keep_base(self, name: str) -> Tensor:
        """(k,) on the host: nothing needs it before training ends."""
        return self._gathered(name).cpu().clone()

    def _shares(self, name: str, weight: Tensor) -> bool:
        return self._values[name].data_ptr() == to_local(weight).data_ptr()

    def _to_hold(self, name: str) -> Tensor | None:
        """What the values were rounded to is had from them again, unless they are the matrix itself."""
        return self._gathered(name).clone() if self._shares(name, self.weights[name]) else None

    def _put_back(self, name: str, held: Tensor | None) -> None:
        if held is None:
            self._write(name)
        else:
            self._put(name, held)

    def _counted(self, counts: dict[str, int]) -> dict[str, int]:
        """Trainable entries of each matrix as a whole, of those that are here."""
        return counts

    def _gathered(self, name: str) -> Tensor:
        """(k,) what the matrix holds at the trainable entries; a view of it where that is all of them."""
        return _take(to_local(self.weights[name]), self._indices[name])

    def _gather_gradient(self, name: str) -> Callable[[Tensor], None]:
        """The freeze: what autograd calls as soon as the gradient of the matrix is complete, averaged over processes.

        The k entries of the mask are added to the gradient that the optimizer sees; those of frozen entries are dropped
        with the rest.
        """
        values, indices = self._values[name], self._indices[name]

        def hook(weight: Tensor) -> None:
            if weight.grad is None:
                raise RuntimeError(
                    f"the gradient of {name} was taken by another hook; close() the entries of an earlier run first"
                )
            gradient = _take(to_local(weight.grad), indices).float()
            weight.grad = None
            if values.grad is None:
                values.grad = gradient
            else:
                values.grad += gradient

        return hook


def _indices(mask: Tensor, device: torch.device) -> Tensor | None:
    """Flat positions of True, int32 where they fit; None = all of them."""
    if bool(mask.all()):
        return None
    kind: Any = torch.int32 if mask.numel() <= torch.iinfo(torch.int32).max else torch.int64
    return mask.to(device).view(-1).nonzero().view(-1).to(kind)


def _take(matrix: Tensor, indices: Tensor | None) -> Tensor:
    flat = matrix.reshape(-1)
    return flat if indices is None else flat.index_select(0, indices)
