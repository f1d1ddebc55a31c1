"""Whole matrices in training, and a rule that says after each step how far every entry got from the base.

As for `compact.py` the optimizer trains float32 values, which the matrices take over rounded; here they are those of
all entries. A rule that knows directions of a matrix' inputs says what the matrix holds for given values, which is then
another thing: checkpoints have it as `values`, since those who read them want the model, and what the optimizer goes on
from as `raw`. Beside them, on the device of the matrix: its base (the bytes of the weight), the sum of gradients and
what the rule made of the base (4 bytes an entry each), the latter two where the rule asks for them. One matrix at a
time is worked on, in float32.

Legend: O outputs, I inputs of a matrix, k = O * I.
"""

from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from dowser_pl.distributed.tensors import to_local
from dowser_pl.errors import DowserError
from dowser_pl.functional.masks import PackedMasks
from dowser_pl.functional.null_space import Directions
from dowser_pl.functional.selection import LOCAL, Reducer
from dowser_pl.masking.base import State
from dowser_pl.masking.compact import CompactEntries

__all__ = ["Rule", "SoftEntries"]


class Rule(Protocol):
    """What decides how far an entry gets; see `dowser_pl.methods.EachStep`."""

    @property
    def sums_gradients(self) -> bool:
        """Whether `step` wants the sum of gradients."""

    @property
    def needs_directions(self) -> bool:
        """Whether `held` is asked, and matrices must not train without directions."""

    def penalty(self, base: Tensor, tuned: Tensor) -> Tensor | None:
        """(O, I) float32 to add to the gradient before a step."""

    def step(
        self, base: Tensor, tuned: Tensor, gradients: Tensor | None, prior: Tensor | None, reducer: Reducer
    ) -> Tensor:
        """(O, I) float32 weights to go on with after a step."""

    def held(self, base: Tensor, values: Tensor, directions: Directions) -> Tensor:
        """(O, I) float32 that a matrix holds for the values that the optimizer has."""


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
        self._directions = directions or {}
        if rule.needs_directions:
            _check_covered(weights, self._directions)
            for values in self._values.values():
                values.data = values.data.clone()  # in float32 they were the memory of the matrix
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

    @torch.no_grad()
    def values(self, name: str) -> Tensor:
        """(k,) float32 that the matrix holds, before it is rounded."""
        if name not in self._directions:
            return super().values(name)
        base = self._base_of(name)
        return self._rule.held(base, self._values[name].detach().view_as(base), self._directions[name]).reshape(-1)

    def num_bytes(self) -> dict[str, int]:
        """Memory by kind, all of it on the device of the matrices."""
        kinds = {"sums": self._sums, "priors": self._priors}
        held = {kind: sum(each.nbytes for each in held.values()) for kind, held in kinds.items()}
        if self._directions:
            own = {id(each): each for each in self._directions.values()}.values()
            held["directions"] = sum(each.vectors.nbytes + each.shares.nbytes for each in own)
        return super().num_bytes() | held

    def state_dict(self, base: bool = True) -> dict[str, dict[str, Tensor]]:
        """The state of `CompactEntries`, with `sum`, `prior` and `raw`, (O, I) float32, where there are any.

        With directions also their `vectors` and `shares`: one tensor for matrices that share an input, so that
        `torch.save` writes them once.
        """
        state = super().state_dict(base)
        sent: dict[int, dict[str, Tensor]] = {}
        for name, found in self._directions.items():
            if id(found) not in sent:
                sent[id(found)] = {"vectors": found.vectors.cpu(), "shares": found.shares.cpu()}
            state[name].update(sent[id(found)])
        for name, each in state.items():
            each.update((kind, kept.cpu()) for kind, kept in self.beside(name).items())
        return state

    def beside(self, name: str) -> dict[str, Tensor]:
        """`sum`, `prior` and `raw`, what the optimizer trains, (O, I) float32 each, where there are any."""
        raw = {key: self._values[key].detach().view_as(to_local(self.weights[key])) for key in self._directions}
        held = {"sum": self._sums, "prior": self._priors, "raw": raw}
        return {kind: tensors[name] for kind, tensors in held.items() if name in tensors}

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
            _stored(state, weights),
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
    def _write_back(self) -> None:
        if not self._directions:
            super()._write_back()
        for name in self._directions:
            here = to_local(self.weights[name])
            here.copy_(self.values(name).view_as(here))

    def _restore(self, state: State) -> None:
        if not self._directions:
            super()._restore(state)
            return
        raw = {name: {**each, "values": each["raw"].reshape(-1)} for name, each in state.items()}
        super()._restore(raw)

    def _keep_base(self, name: str) -> Tensor:
        return self._gathered(name).clone()

    def _base_of(self, name: str) -> Tensor:
        return self._base[name].view_as(to_local(self.weights[name])).float()


def _check_covered(weights: Mapping[str, nn.Parameter], directions: Mapping[str, Directions]) -> None:
    """Refuse matrices that would train without what protects them.

    Raises:
        DowserError: naming the first without directions, or with those of other inputs.
    """
    for name, weight in weights.items():
        inputs = len(directions[name].vectors) if name in directions else 0
        if weight.dim() != 2 or inputs != weight.shape[1]:
            raise DowserError(
                f"{name} of shape {tuple(weight.shape)} got directions of {inputs} inputs, expected those of its own: "
                "it would train unprotected. Measure them on this model, with all of its tuned matrices"
            )


def _stored(state: State, weights: Mapping[str, nn.Parameter]) -> dict[str, Directions]:
    """Directions of a checkpoint, shared again by the matrices that shared them, on the device of the weights."""
    found: dict[str, Directions] = {}
    known: dict[int, Directions] = {}
    for name, each in state.items():
        if "vectors" in each:
            device = weights[name].device
            loaded = Directions(each["vectors"].to(device), each["shares"].to(device))
            found[name] = known.setdefault(each["vectors"].data_ptr() or id(loaded), loaded)
    return found
