"""Whole matrices in training, and a rule that says after each step how far every entry got from the base.

As for `compact.py` the optimizer trains float32 values, which the matrices take over rounded; here they are those of
all entries. Beside them, on the device of the matrix: its base (the bytes of the weight), the sum of gradients and what
the rule made of the base (4 bytes an entry each), the latter two where the rule asks for them. One matrix at a time is
worked on, in float32.

Legend: O outputs, I inputs of a matrix, k = O * I.
"""

from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from dowser_pl.distributed.tensors import to_local
from dowser_pl.errors import DowserError
from dowser_pl.functional.masks import PackedMasks
from dowser_pl.functional.selection import LOCAL, Reducer
from dowser_pl.masking.base import State
from dowser_pl.masking.compact import CompactEntries

__all__ = ["Rule", "SoftEntries"]


class Rule(Protocol):
    """What decides how far an entry gets; see `dowser_pl.methods.EachStep`."""

    @property
    def sums_gradients(self) -> bool:
        """Whether `step` wants the sum of gradients."""

    def penalty(self, base: Tensor, tuned: Tensor) -> Tensor | None:
        """(O, I) float32 to add to the gradient before a step."""

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

    Raises:
        DowserError: see `CompactEntries`.
    """

    reducer: ClassVar[Reducer] = LOCAL

    def __init__(self, weights: Mapping[str, nn.Parameter], rule: Rule, priors: Mapping[str, Tensor]) -> None:
        here = {name: to_local(weight) for name, weight in weights.items()}
        super().__init__(weights, PackedMasks.of((n, torch.ones_like(e, dtype=torch.bool)) for n, e in here.items()))
        self._rule = rule
        self._priors = {name: prior.to(weights[name].device) for name, prior in priors.items()}
        self._sums = (
            {name: torch.zeros_like(each, dtype=torch.float32) for name, each in here.items()}
            if rule.sums_gradients
            else {}
        )

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Nothing is frozen: every entry keeps its gradient, to which the penalty of the rule is added.

        As in `CompactEntries` it was gathered in the backward pass, which is checked.
        """
        super().mask_gradients()
        for name in self.weights:
            values, base = self._values[name], self._base_of(name)
            penalty = self._rule.penalty(base, values.detach().view_as(base))
            if penalty is None:
                return
            if values.grad is None:
                values.grad = torch.zeros_like(values)
            values.grad += penalty.reshape(-1)

    @torch.no_grad()
    def after_step(self) -> None:
        """Sum the gradients, apply the rule, and write the values back into the matrices."""
        for name in self.weights:
            values, base = self._values[name], self._base_of(name)
            if name in self._sums and values.grad is not None:
                self._sums[name] += values.grad.view_as(base)
            tuned = values.detach().view_as(base)
            moved = self._rule.step(base, tuned, self._sums.get(name), self._priors.get(name), self.reducer)
            if moved is not tuned:
                tuned.copy_(moved)
        self._write_back()

    def base_values(self, name: str) -> Tensor:
        """(k,) pretrained values, on the CPU."""
        return self._base[name].cpu()

    def num_bytes(self) -> dict[str, int]:
        """Memory by kind, all of it on the device of the matrices."""
        kinds = {"sums": self._sums, "priors": self._priors}
        return super().num_bytes() | {kind: sum(each.nbytes for each in held.values()) for kind, held in kinds.items()}

    def state_dict(self, base: bool = True) -> dict[str, dict[str, Tensor]]:
        """The state of `CompactEntries`, with `sum` and `prior`, (O, I) float32, where there are any."""
        state = super().state_dict(base)
        for name, each in state.items():
            each.update((kind, kept.cpu()) for kind, kept in self.beside(name).items())
        return state

    def beside(self, name: str) -> dict[str, Tensor]:
        """`sum` and `prior`, (O, I) float32 each, where there are any."""
        held = {"sum": self._sums, "prior": self._priors}
        return {kind: tensors[name] for kind, tensors in held.items() if name in tensors}

    @classmethod
    def resumed(cls, weights: Mapping[str, nn.Parameter], rule: Rule, state: State) -> "SoftEntries":
        """Rebuild from `state_dict` and the tuned weights of the same checkpoint, already loaded.

        Raises:
            DowserError: if the checkpoint is of other matrices, or its rule kept other things.
        """
        cls.check_names(weights, state)
        entries = cls(weights, rule, {name: each["prior"] for name, each in state.items() if "prior" in each})
        if any(("sum" in state[name]) != (name in entries._sums) for name in weights):
            raise DowserError(
                "the checkpoint and this run's method do not keep the same things of every matrix (sums of gradients); "
                "resume with the version that wrote the checkpoint"
            )
        entries._restore(state)
        for name, total in entries._sums.items():
            total.copy_(state[name]["sum"])
        return entries

    def _keep_base(self, name: str) -> Tensor:
        return self._gathered(name).clone()

    def _base_of(self, name: str) -> Tensor:
        return self._base[name].view_as(to_local(self.weights[name])).float()
