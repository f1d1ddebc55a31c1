"""Hooks that reduce what flows through each matrix to one vector per prompt.

Forward hooks *assign* the activation, because gradient checkpointing runs them once or twice; gradients are
reduced inside tensor hooks on the outputs, so no output gradient outlives its hook and no weight gradient is
ever formed.

Legend: B prompts of a batch, T positions, O outputs, I inputs of a matrix.
"""

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, nn

__all__ = ["Recorder"]


class Recorder:
    """Context manager that records ``|h|``, ``|g|`` and ``g^2`` of the given matrices, batch by batch.

    Args:
        layers: run-time name -> the linear module.

    Attributes:
        activation: name -> (B, I) float32, mean over real positions of |h_j|.
        abs_gradient: name -> (B, O) float32, *sum* over probes of the mean over real positions of |g_i|.
        square_gradient: name -> (B, O) float32, the same of g_i^2.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self.activation: dict[str, Tensor] = {}
        self.abs_gradient: dict[str, Tensor] = {}
        self.square_gradient: dict[str, Tensor] = {}
        self._weights = torch.empty(0, 0)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "Recorder":
        for name, module in self.layers.items():
            self._handles.append(module.register_forward_hook(self._watch(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def start(self, positions: Tensor) -> None:
        """Forget the last batch.

        Args:
            positions: (B, T) bool, True = real token.
        """
        for recorded in (self.activation, self.abs_gradient, self.square_gradient):
            recorded.clear()
        self._weights = positions / positions.sum(dim=1, keepdim=True)

    def check_complete(self) -> None:
        """Fail closed when a matrix saw no activation or no gradient in this batch.

        Raises:
            ValueError: naming the matrices; they would otherwise have no score.
        """
        missing = [name for name in self.layers if name not in self.abs_gradient]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self.layers)} matrices got no probe gradient, first {missing[0]!r}: "
                "the text decoder did not run through them. Leave them out of `model.targets` or report the "
                "model family"
            )

    def _watch(self, name: str):  # type: ignore[no-untyped-def]
        def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
            self.activation[name] = self._mean(inputs[0].detach().float().abs())
            if output.requires_grad:
                output.register_hook(lambda gradient: self._add(name, gradient))

        return forward

    def _add(self, name: str, gradient: Tensor) -> None:
        gradient = gradient.detach().float()
        for recorded, value in (
            (self.abs_gradient, gradient.abs()),
            (self.square_gradient, gradient.square()),
        ):
            mean = self._mean(value)
            recorded[name] = recorded[name] + mean if name in recorded else mean

    def _mean(self, values: Tensor) -> Tensor:
        """(B, T, D), or (B * T, D) as OPT has it, -> (B, D), the mean over real positions."""
        num_rows, num_positions = self._weights.shape
        if values.dim() == 2 and len(values) == num_rows * num_positions:
            values = values.view(num_rows, num_positions, -1)
        if values.dim() != 3 or len(values) != num_rows:
            raise ValueError(
                f"expected (batch, positions, features) with {num_rows} rows at a decoder matrix, got "
                f"{tuple(values.shape)}; this model family is not supported"
            )
        if values.shape[1] != num_positions:  # cross-attention reads the source, which is never padded
            return values.mean(dim=1)
        return torch.einsum("bt,btd->bd", self._weights.to(values), values)
