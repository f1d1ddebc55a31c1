"""Adapters behind a projection: what the optimizer trains of an A is R, and the adapter holds A = R P.

    h -> W0 h + s B (R P) h,    P = I - U diag(d) U^T,    dL/dR = (dL/dA) P

with P fixed and symmetric (`dowser_pl/functional/null_space.py`): this is training R and B of W0 + s B R P by any
optimizer, whatever it keeps of gradients, to the last step. It is not Adam's step of A times P, whose moments would be
of other gradients. Nothing in the forward pass knows of it: after each step R P is written into the adapter, which is
an ordinary one at all times. Weight decay pulls R, and with it A, to 0: the base.

The move of a matrix is s B A, of rank r, and what it does to inputs is s B R (P h): what P takes out moves nothing. A B
may be behind a projection of its outputs in the same way, B = P R, with dL/dR = P (dL/dB); it needs all rows of B, so
that is not for matrices that are sharded.

Legend: O outputs, I inputs of an A, k = O * I, r directions.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dowser_pl.distributed.tensors import shape_of, to_local
from dowser_pl.errors import DowserError
from dowser_pl.functional.masks import PackedMasks
from dowser_pl.functional.null_space import Directions, projected
from dowser_pl.masking.base import State
from dowser_pl.masking.compact import CompactEntries
from dowser_pl.masking.directions import as_shared, bytes_of, stored_directions
from dowser_pl.masking.sharded import ShardedEntries

__all__ = ["ProjectedEntries", "ShardedProjectedEntries"]


class ProjectedEntries(CompactEntries):
    """Every entry of the given matrices, some of them behind a projection of their inputs or outputs.

    A matrix with directions holds `R P` (`P R` of outputs) from now on; what it held is R.

    Args:
        weights: run-time name -> (O, I) parameter that takes a gradient.
        directions: name -> directions of the inputs or outputs; matrices that have none train as they are.

    Attributes:
        directions: as given.

    Raises:
        DowserError: see `CompactEntries`; also if directions are of no matrix here, or of others.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], directions: Mapping[str, Directions]) -> None:
        _check_inputs(weights, directions)
        self.directions = dict(directions)
        self._directions = {name: each for name, each in directions.items() if len(each.shares)}
        here = {name: to_local(weight) for name, weight in weights.items()}
        super().__init__(weights, PackedMasks.of((n, torch.ones_like(e, dtype=torch.bool)) for n, e in here.items()))
        for name in self._directions:  # in float32 they were the memory of the matrix
            self._values[name].data = self._values[name].data.clone()
        self._write_back()

    @torch.no_grad()
    def values(self, name: str) -> Tensor:
        """(k,) float32 that the matrix holds, before it is rounded: `R P`."""
        if name not in self._directions:
            return super().values(name)
        return self._behind(name, self._values[name].detach())

    def beside(self, name: str) -> dict[str, Tensor]:
        """`raw`, (O, I) float32: R, what the optimizer trains, where it is not what the matrix holds."""
        if name not in self._directions:
            return {}
        return {"raw": self._values[name].detach().view_as(to_local(self.weights[name]))}

    def num_bytes(self) -> dict[str, int]:
        """Memory by kind; `directions` are on the device."""
        return super().num_bytes() | {"directions": bytes_of(self._directions)}

    def shared(self, name: str) -> dict[str, Tensor]:
        """`vectors` and `shares` of the directions of its inputs, where there are any."""
        return as_shared(self.directions.get(name))

    @classmethod
    def resumed(cls, weights: Mapping[str, nn.Parameter], state: State) -> "ProjectedEntries":
        """Rebuild from `state_dict` and the tuned weights of the same checkpoint, already loaded.

        Raises:
            DowserError: if the checkpoint is of other matrices, or lacks what was trained.
        """
        cls.check_names(weights, state)
        entries = cls(weights, stored_directions(state, weights))
        odd = [name for name in weights if ("raw" in state[name]) != (name in entries._directions)]
        if odd:
            raise DowserError(
                f"the checkpoint is damaged: {odd[0]} must have raw values and directions, or neither; give another "
                "checkpoint"
            )
        entries._restore(
            {n: {**each, "values": each.get("raw", each["values"]).reshape(-1)} for n, each in state.items()}
        )
        return entries

    @torch.no_grad()
    def _write(self, name: str) -> None:
        if name in self._directions:
            here = to_local(self.weights[name])
            here.copy_(self.values(name).view_as(here))
        else:
            super()._write(name)

    def _gather_gradient(self, name: str) -> Callable[[Tensor], None]:
        """As `CompactEntries`, and of the gradient of A that of R is made, as it comes."""
        gather, values = super()._gather_gradient(name), self._values[name]
        if name not in self._directions:
            return gather

        @torch.no_grad()
        def hook(weight: Tensor) -> None:
            before, values.grad = values.grad, None
            gather(weight)
            gradient: Any = values.grad
            values.grad = self._behind(name, gradient)
            if before is not None:
                values.grad += before

        return hook

    def _behind(self, name: str, flat: Tensor) -> Tensor:
        """(k,) times P, from its side; in float32 under any autocast."""
        with torch.autocast(flat.device.type, enabled=False):
            return projected(flat.view_as(to_local(self.weights[name])), self._directions[name]).reshape(-1)


class ShardedProjectedEntries(ProjectedEntries, ShardedEntries):
    """`ProjectedEntries` of the rows that this process holds: P works on each row by itself, so no message is sent.

    Args:
        weights: run-time name -> parameter that is sharded over the processes, by rows.
        directions: as there, all of them on every process.
    """


def _check_inputs(weights: Mapping[str, nn.Parameter], directions: Mapping[str, Directions]) -> None:
    for name, each in directions.items():
        shape = tuple(shape_of(weights[name])) if name in weights else ()
        side, axis = ("outputs", 0) if each.left else ("inputs", 1)
        apart = len(shape) != 2 or (to_local(weights[name]).shape != shape if each.left else _in_pieces(weights[name]))
        if apart or len(each.vectors) != shape[axis]:
            raise DowserError(
                f"got directions of {len(each.vectors)} {side} for {name} of shape {shape or None}, expected those of "
                f"its own {side}, and whole rows on each process (of outputs, all): measure them on this model"
            )


def _in_pieces(weight: Tensor) -> bool:
    return to_local(weight).dim() != 2
