"""What matrices take in, as one square matrix each: the mean over tokens of h h^T.

It says how much a change of the weights changes the outputs (`tr(dW E[h h^T] dW^T)`), which is what methods that
compensate need. Cost: a float32 matrix of I x I for each group of matrices with the same input: 64 MiB at I = 4096,
485 MB at I = 11008; for large models give the matrices of a few decoder layers at a time.

Legend: B rows of a batch, T positions, I inputs of a matrix.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dowser_pl.errors import DowserError
from dowser_pl.importance.recorder import Watching
from dowser_pl.models.input_positions import InputPositions

__all__ = ["InputGrams", "grouped"]


class InputGrams(Watching):
    """Context manager that sums h h^T over the tokens that the given matrices take in, batch by batch.

    Matrices that are handed the same tensor (q, k and v) share one sum. Use it with gradients off: gradient
    checkpointing would run forward passes twice.

    ::

        with torch.no_grad(), InputGrams(layers) as grams:
            for batch in batches:
                grams.start(batch["attention_mask"].bool())
                model(**batch)
        gram = grams.mean("decoder.layers.0.q_proj")

    Args:
        layers: run-time name -> linear module.

    Attributes:
        sums: name -> (I, I) float32 on the device of the inputs; of matrices that share an input the first has it.
        counts: name -> tokens summed, by their weights, for the same names. Both add up over processes.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__(layers)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}
        self._owner: dict[str, str] = {}
        self._positions: Tensor | None = None
        self._weights: Tensor | None = None
        self._elsewhere = InputPositions({})
        self._last: tuple[str, Tensor] | None = None

    def _hook(self, name: str, module: nn.Module) -> RemovableHandle:
        return module.register_forward_pre_hook(self._watch(name))

    def _forget(self) -> None:
        self._positions = self._weights = self._last = None
        self._elsewhere = InputPositions({})

    def start(
        self, positions: Tensor | None, weights: Tensor | None = None, inputs: Mapping[str, Any] | None = None
    ) -> None:
        """Begin a batch of inputs.

        Args:
            positions: (B, T) bool, True = real token; None counts every position. Inputs of another length
                (cross-attention reads the source) count whole.
            weights: (B, T) float32, how much a position counts; None = each as one token. To matrices that read
                something else than the row all their positions are one token each.
            inputs: of the model, which tell what matrices read that is no token of the row.
        """
        self._positions, self._weights, self._last = positions, weights, None
        self._elsewhere = InputPositions(inputs or {})

    def clear(self) -> None:
        """Forget what was summed, but not of which matrices."""
        for total in self.sums.values():
            total.zero_()
        self.counts = dict.fromkeys(self.counts, 0.0)

    def shared_with(self, name: str) -> str:
        """The first of the matrices that share the input of this one; the matrix itself, where nothing was summed."""
        return self._owner.get(name, name)

    def mean(self, name: str) -> Tensor:
        """(I, I) float32, the mean over tokens of h h^T.

        Raises:
            DowserError: if the matrix took nothing in.
        """
        owner = self._owner.get(name)
        if owner is None or not self.counts[owner]:
            raise DowserError(
                f"{name} took in no token of the calibration batches, so nothing is known of its inputs: run the "
                "model on at least one batch, or leave the matrix out of `model.targets`"
            )
        return self.sums[owner] / self.counts[owner]

    def _watch(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            value = inputs[0].detach()
            owner = self._last[0] if self._last is not None and self._last[1] is inputs[0] else name
            if self._owner.setdefault(name, owner) != owner:
                raise DowserError(
                    f"{name} shares its input with {self._owner[name]} in one batch and with {owner} in another, "
                    "expected the same in all; this model family is not supported"
                )
            if owner == name:
                self._last = (name, inputs[0])
                with torch.autocast(value.device.type, enabled=False):  # sums are float32 whatever the model is in
                    self._add(name, *self._tokens(name, value))

        return before

    def _add(self, name: str, tokens: Tensor, weights: Tensor | None) -> None:
        if name not in self.sums:
            self.sums[name] = tokens.new_zeros(tokens.shape[1], tokens.shape[1])
            self.counts[name] = 0.0
        weighted = tokens if weights is None else tokens * weights
        self.sums[name].addmm_(weighted.T, tokens)
        self.counts[name] += len(tokens) if weights is None else float(weights.sum())

    def _tokens(self, name: str, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """(tokens, I) float32 of (B, T, I), or (B * T, I) as OPT has it, without padding; and (tokens, 1) weights."""
        flat, weights = value.reshape(-1, value.shape[-1]), self._weights
        real = self._elsewhere.real(name, self._elsewhere.by_row(name, value))
        if real is not None:
            weights = None
        else:
            real = self._positions
            given = weights if real is None else real
            if given is None or len(flat) != given.numel():
                return flat.float(), None
        weights = None if weights is None else weights.reshape(-1, 1).to(flat.device)
        if real is None:
            return flat.float(), weights
        real = real.reshape(-1).to(flat.device)
        return flat[real].float(), None if weights is None else weights[real]


def grouped(layers: Mapping[str, nn.Linear], blocks: Mapping[str, str], limit: int) -> list[dict[str, nn.Linear]]:
    """The matrices of consecutive decoder layers, as many as may be measured at once, in model order.

    Args:
        layers: run-time name -> linear module.
        blocks: name -> the decoder layer it lies in, which is never split.
        limit: bytes of (I, I) float32 sums that a group may take, were no input shared; a layer alone may take more.
    """
    groups: list[dict[str, nn.Linear]] = []
    of_block: dict[str, list[str]] = {}
    left = 0
    for name, block in blocks.items():
        of_block.setdefault(block, []).append(name)
    for names in of_block.values():
        needed = sum(4 * layers[name].in_features ** 2 for name in names)
        if not groups or needed > left:
            groups.append({})
            left = limit
        groups[-1] |= {name: layers[name] for name in names}
        left -= needed
    return groups
