"""Whole matrices in training, and a rule that says after each step how far every entry got from the base.

As for `compact.py` the optimizer trains float32 values, which the matrices take over rounded; here they are those of
all entries. Beside them, on the device of the matrix: its base (the bytes of the weight), the sum of gradients and what
the rule made of the base (4 bytes an entry each), the latter two where the rule asks for them. One matrix at a time is
worked on, in float32.

Where inputs of a matrix have directions to be left alone, the optimizer trains the offset D from the base, and the
matrix holds W0 + D P (`dowser_pl/functional/null_space.py`), or W0 + P D P' where its outputs have some too. So every
step is multiplied by P, and decay pulls to the base. A checkpoint has what the matrix holds as `values`, D as `offset`.

Legend: O outputs, I inputs of a matrix, k = O * I.
"""

import itertools
from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dowser_pl.distributed.tensors import to_local
from dowser_pl.errors import DowserError
from dowser_pl.functional.masks import PackedMasks
from dowser_pl.functional.null_space import Directions, projected
from dowser_pl.functional.selection import LOCAL, Reducer
from dowser_pl.masking.base import State
from dowser_pl.masking.compact import CompactEntries
from dowser_pl.masking.directions import as_shared, bytes_of, stored_directions
from dowser_pl.masking.moments import decay_of, first_moment

__all__ = ["Rule", "SoftEntries"]


class Rule(Protocol):
    """What decides how far an entry gets; see `dowser_pl.methods.EachStep`."""

    @property
    def sums_gradients(self) -> bool:
        """Whether `step` wants the sum of gradients."""

    @property
    def needs_directions(self) -> bool:
        """Whether matrices must not train without directions of their inputs."""

    @property
    def needs_moment(self) -> bool:
        """Whether `filtered` is asked."""

    def penalty(self, base: Tensor, tuned: Tensor) -> Tensor | None:
        """(O, I) float32 to add to the gradient before a step."""

    def filtered(self, before: Tensor, tuned: Tensor, moment: Tensor, decayed: float, reducer: Reducer) -> Tensor:
        """(O, I) float32, what is to become of the optimizer's step."""

    def step(
        self, base: Tensor, tuned: Tensor, gradients: Tensor | None, prior: Tensor | None, reducer: Reducer
    ) -> Tensor:
        """(O, I) float32 weights to go on with after a step."""


class SoftEntries(CompactEntries):
    """Every entry of the tuned matrices, and a rule that is applied around every step.

    Args:
        weights: run-time name -> (O, I) parameter that takes a gradient, holding the base.
        rule: applied to each matrix by itself.
        priors: name -> (O, I) float32 that the rule made of the base; may lack names.
        directions: name -> directions of the inputs, one object for matrices that share an input; for rules that need
            them.

    Raises:
        DowserError: see `CompactEntries`.
    """

    reducer: ClassVar[Reducer] = LOCAL

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        rule: Rule,
        priors: Mapping[str, Tensor],
        directions: Mapping[str, Directions] | None = None,
    ) -> None:
        here = {name: to_local(weight) for name, weight in weights.items()}
        super().__init__(weights, PackedMasks.of((n, torch.ones_like(e, dtype=torch.bool)) for n, e in here.items()))
        self._rule = rule
        self._directions = dict(directions or {})
        if rule.needs_directions:
            _check_covered(weights, self._directions)
        for name in filter(self._is_offset, weights):
            self._values[name].data = torch.zeros_like(self._values[name])
        self._priors = {name: prior.to(weights[name].device) for name, prior in priors.items()}
        self._sums = (
            {name: torch.zeros_like(each, dtype=torch.float32) for name, each in here.items()}
            if rule.sums_gradients
            else {}
        )
        self._before = {n: torch.empty_like(each) for n, each in self._values.items()} if rule.needs_moment else {}

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Nothing is frozen: every entry keeps its gradient, to which the penalty of the rule is added.

        As in `CompactEntries` it was gathered in the backward pass, which is checked.
        """
        super().mask_gradients()
        for name, before in self._before.items():
            before.copy_(self._values[name])
        for name in itertools.filterfalse(self._is_offset, self.weights):
            values, base = self._values[name], self._base_of(name)
            penalty = self._rule.penalty(base, values.detach().view_as(base))
            if penalty is None:
                return
            if values.grad is None:
                values.grad = torch.zeros_like(values)
            values.grad += penalty.reshape(-1)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer | None = None) -> None:
        """Sum the gradients, apply the rule, and write the values back into the matrices.

        Args:
            optimizer: that made the step; may be None unless the rule needs its moments.
        """
        for name in itertools.filterfalse(self._is_offset, self.weights):
            values, base = self._values[name], self._base_of(name)
            if name in self._sums and values.grad is not None:
                self._sums[name] += values.grad.view_as(base)
            tuned = values.detach().view_as(base)
            if name in self._before and values.grad is not None:
                self._filter(name, optimizer)
            moved = self._rule.step(base, tuned, self._sums.get(name), self._priors.get(name), self.reducer)
            if moved is not tuned:
                tuned.copy_(moved)
        self._write_back()

    def base_values(self, name: str) -> Tensor:
        """(k,) pretrained values, on the CPU."""
        return self._base[name].cpu()

    def _base_at_hand(self, name: str) -> Tensor:
        return self._base[name]

    @torch.no_grad()
    def values(self, name: str) -> Tensor:
        """(k,) float32 that the matrix holds, before it is rounded."""
        return self._held(name).reshape(-1) if self._is_offset(name) else super().values(name)

    def num_bytes(self) -> dict[str, int]:
        """Memory by kind, all of it on the device of the matrices."""
        kinds = {"sums": self._sums, "priors": self._priors} | ({"before": self._before} if self._before else {})
        held = {kind: sum(each.nbytes for each in tensors.values()) for kind, tensors in kinds.items()}
        held |= {"directions": bytes_of(self._directions)} if self._directions else {}
        return super().num_bytes() | held

    def beside(self, name: str) -> dict[str, Tensor]:
        """`sum`, `prior` and `offset`, (O, I) float32 each, where there are any."""
        kinds = {"sum": self._sums, "prior": self._priors}
        held = {kind: tensors[name] for kind, tensors in kinds.items() if name in tensors}
        if self._is_offset(name):
            held["offset"] = self._offset(name)
        return held

    def shared(self, name: str) -> dict[str, Tensor]:
        """`vectors` and `shares` of the directions of its inputs, where there are any."""
        return as_shared(self._directions.get(name))

    @classmethod
    def resumed(cls, weights: Mapping[str, nn.Parameter], rule: Rule, state: State) -> "SoftEntries":
        """Rebuild from `state_dict` and the tuned weights of the same checkpoint, already loaded.

        Raises:
            DowserError: if the checkpoint is of other matrices, or its rule kept other things.
        """
        cls.check_names(weights, state)
        entries = cls(
            weights,
            rule,
            {name: each["prior"] for name, each in state.items() if "prior" in each},
            stored_directions(state, weights),
        )
        if any(("sum" in state[name]) != (name in entries._sums) for name in weights):
            raise DowserError(
                "the checkpoint and this run's method do not keep the same things of every matrix (sums of gradients); "
                "resume with the version that wrote the checkpoint"
            )
        entries._restore(state)
        for name, total in entries._sums.items():
            total.copy_(state[name]["sum"])
        return entries

    @torch.no_grad()
    def _write(self, name: str) -> None:
        if self._is_offset(name):
            to_local(self.weights[name]).copy_(self._held(name))
        else:
            super()._write(name)

    def _filter(self, name: str, optimizer: Optimizer | None) -> None:
        """Let the rule decide what is to become of a step of the optimizer that trains this matrix."""
        if optimizer is None:
            raise DowserError(f"{name} is filtered by what the optimizer keeps, got none; pass it to after_step")
        values, shape = self._values[name], to_local(self.weights[name]).shape
        moment = first_moment(optimizer, values)
        if moment is not None:  # else it is trained by another optimizer
            before, tuned, moment = (each.detach().view(shape) for each in (self._before[name], values, moment))
            tuned.copy_(self._rule.filtered(before, tuned, moment, decay_of(optimizer, values), self.reducer))

    def _restore(self, state: State) -> None:
        trained = {n: {**each, "values": each.get("offset", each["values"]).reshape(-1)} for n, each in state.items()}
        super()._restore(trained)

    def _is_offset(self, name: str) -> bool:
        """Whether the optimizer trains the offset of a matrix from its base."""
        return name in self._directions and len(self._directions[name].shares) > 0

    def _offset(self, name: str) -> Tensor:
        return self._values[name].detach().view_as(to_local(self.weights[name]))

    def _held(self, name: str) -> Tensor:
        """(O, I) float32: W0 + D P, of what is here."""
        moved = projected(self._offset(name), self._directions[name])
        return moved.add_(self._base[name].view_as(moved))

    def _keep_base(self, name: str) -> Tensor:
        return self._gathered(name).clone()

    def _base_of(self, name: str) -> Tensor:
        return self._base[name].view_as(to_local(self.weights[name])).float()


def _check_covered(weights: Mapping[str, nn.Parameter], directions: Mapping[str, Directions]) -> None:
    """Refuse matrices that would train without what protects them.

    Raises:
        DowserError: naming the first without directions, or with those of another matrix.
    """
    for name, weight in weights.items():
        found = directions.get(name)
        inputs = 0 if found is None else len(found.vectors)
        outputs = None if found is None or found.outputs is None else len(found.outputs)
        if weight.dim() != 2 or inputs != weight.shape[1] or outputs not in (None, weight.shape[0]):
            sides = f"{inputs} inputs" + ("" if outputs is None else f" and {outputs} outputs")
            raise DowserError(
                f"{name} of shape {tuple(weight.shape)} got directions of {sides}, expected those of its own: "
                "it would train unprotected. Measure them on this model, with all of its tuned matrices"
            )
