"""Hooks that reduce what flows through each matrix to one vector per prompt.

Forward hooks *assign* the activation, because gradient checkpointing runs them once or twice; gradients are
reduced inside tensor hooks on the outputs, so no output gradient outlives its hook and no weight gradient is
ever formed. The first matrices on the way from the embeddings are the roots of the graph: nothing below them is
differentiated. Only one position of a prompt is probed, so behind the attention of the last decoder layer every other
position's gradient is zero: multiplying those rows by the weight would be most of that layer's backward pass, and they
are left out (`live_rows_only`).

Legend: B prompts of a batch, T positions, O outputs, I inputs of a matrix.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from dowser_pl.errors import DowserError
from dowser_pl.models.input_positions import InputPositions

__all__ = ["FACTORS", "PRODUCTS", "Recorder", "Watching", "live_rows_only"]


Self = TypeVar("Self", bound="Watching")


class Watching(ABC):
    """Context manager that hooks onto matrices when entered, and lets go of them when left, also after an error.

    Args:
        layers: run-time name -> linear module.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self._handles: list[RemovableHandle] = []

    def __enter__(self: Self) -> Self:
        for name, module in self.layers.items():
            self._handles.append(self._hook(name, module))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forget()

    @abstractmethod
    def _hook(self, name: str, module: nn.Module) -> RemovableHandle:
        """Put the hook onto one matrix."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop what was held of the batch."""


FACTORS = ("activation", "abs_gradient", "square_gradient")
"""Statistics with one row per prompt."""
PRODUCTS = ("token_product", "weight_square")
"""Statistics with one number per weight, which do not factorise."""


class Recorder(Watching):
    """Context manager that records the statistics of the given matrices, batch by batch.

    Args:
        layers: run-time name -> the linear module.
        statistics: from `FACTORS` and `PRODUCTS`.

    Attributes:
        factors: statistic -> name -> (B, I) or (B, O) float32 of the present batch. `activation`: mean over real
            positions of |h_j|; `abs_gradient` and `square_gradient`: *sum* over probes of the mean over real
            positions of |g_i| and g_i^2. Matrices with the same input share one tensor.
        products: statistic -> name -> (O, I) float32, *sum* over all prompts and probes so far.
    """

    def __init__(self, layers: Mapping[str, nn.Module], statistics: Collection[str]) -> None:
        super().__init__(layers)
        self.factors: dict[str, dict[str, Tensor]] = {name: {} for name in FACTORS if name in statistics}
        self.products: dict[str, dict[str, Tensor]] = {name: {} for name in PRODUCTS if name in statistics}
        self._weights = torch.empty(0, 0)
        self._elsewhere = InputPositions({})
        self._seen: set[str] = set()
        self._inputs: dict[str, Tensor] = {}
        self._last_input: tuple[Tensor, Tensor] | None = None

    def _hook(self, name: str, module: nn.Module) -> RemovableHandle:
        return module.register_forward_hook(self._watch(name))

    def _forget(self) -> None:
        self._inputs.clear()
        self._last_input = None
        self._elsewhere = InputPositions({})

    def start(self, positions: Tensor, inputs: Mapping[str, Any] | None = None) -> None:
        """Forget the factors of the last batch.

        Args:
            positions: (B, T) bool, True = real token.
            inputs: of the model, which tell what matrices read that is no token of the row.
        """
        for recorded in self.factors.values():
            recorded.clear()
        self._seen.clear()
        counts = positions.sum(dim=1, keepdim=True)
        self._weights = positions.float() / counts.float()  # explicit: half precision changes the default dtype
        self._elsewhere = InputPositions(inputs or {})

    def check_complete(self) -> None:
        """Fail closed when a matrix saw no gradient in this batch.

        Raises:
            DowserError: naming the matrices; they would otherwise have no score.
        """
        missing = [name for name in self.layers if name not in self._seen]
        if missing:
            raise DowserError(
                f"{len(missing)} of {len(self.layers)} matrices got no probe gradient, first {missing[0]!r}: "
                "the model did not run through them. Leave them out of `model.targets` or report the model family"
            )

    def _watch(self, name: str):  # type: ignore[no-untyped-def]
        def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ARG001
            if "activation" in self.factors:
                with torch.autocast(output.device.type, enabled=False):
                    self.factors["activation"][name] = self._activation(name, inputs[0])
            if self.products:
                self._inputs[name] = inputs[0].detach()
            if not torch.is_grad_enabled():
                return output
            if output.requires_grad:
                output.register_hook(lambda gradient: self._add(name, gradient.detach()))
            else:  # among the first on the way: the backward pass ends here
                output = output.detach().requires_grad_()
                output.register_post_accumulate_grad_hook(lambda root: self._add_root(name, root))
            return output

        return forward

    def _activation(self, name: str, value: Tensor) -> Tensor:
        if self._last_input is None or self._last_input[0] is not value:  # q, k and v read the same tensor
            self._last_input = (value, self._mean(name, value.detach().abs()))
        return self._last_input[1]

    def _add_root(self, name: str, root: Tensor) -> None:
        if root.grad is not None:
            self._add(name, root.grad)
            root.grad = None

    def _add(self, name: str, gradient: Tensor) -> None:
        self._seen.add(name)
        with torch.autocast(gradient.device.type, enabled=False):  # sums are float32 whatever the model computes in
            self._add_exactly(name, gradient)

    def _add_exactly(self, name: str, gradient: Tensor) -> None:
        if "abs_gradient" in self.factors:
            _accumulate(self.factors["abs_gradient"], name, self._mean(name, gradient.abs()))
        if "square_gradient" in self.factors:
            _accumulate(self.factors["square_gradient"], name, self._mean(name, gradient.float().square()))
        if not self.products:
            return
        g, h = (self._by_prompt(name, each).float() for each in (gradient, self._inputs[name]))
        for statistic, sums in self.products.items():
            if name not in sums:
                sums[name] = g.new_zeros(g.shape[-1], h.shape[-1])
            if statistic == "token_product":
                weighted = g.abs() * self._position_weights(name, g)[..., None]
                sums[name].addmm_(weighted.flatten(0, 1).T, h.abs().flatten(0, 1))
            else:
                for g_prompt, h_prompt in zip(g, h, strict=True):  # a square is taken prompt by prompt
                    derivative = g_prompt.T @ h_prompt
                    sums[name].addcmul_(derivative, derivative)

    def _mean(self, name: str, values: Tensor) -> Tensor:
        """(B, T, D), or (B * T, D) as OPT has it, -> (B, D) float32, the mean over real positions."""
        values = self._by_prompt(name, values).float()
        return torch.bmm(self._position_weights(name, values)[:, None], values)[:, 0]

    def _by_prompt(self, name: str, values: Tensor) -> Tensor:
        num_rows, num_positions = self._weights.shape
        values = self._elsewhere.by_row(name, values)
        if values.dim() == 2 and len(values) == num_rows * num_positions:
            values = values.view(num_rows, num_positions, -1)
        if values.dim() != 3 or len(values) != num_rows:
            raise DowserError(
                f"expected (batch, positions, features) with {num_rows} rows at a decoder matrix, got "
                f"{tuple(values.shape)}; this model family is not supported"
            )
        return values

    def _position_weights(self, name: str, values: Tensor) -> Tensor:
        """(B, T) float32 that sum to one over the real positions of each row."""
        read = self._elsewhere.real(name, values)
        if read is not None:
            return read.float() / read.sum(dim=1, keepdim=True).clamp(min=1).float()
        if values.shape[1] == self._weights.shape[1]:
            return self._weights
        # cross-attention reads the source, which is never padded
        return values.new_full(values.shape[:2], 1 / values.shape[1])


def _accumulate(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name].add_(value) if name in sums else value


_BLOCK = 32  # rows are multiplied in so many: products of a few rows round differently from those of many


class _LiveRows(torch.autograd.Function):
    """`linear` whose backward pass multiplies the rows that are not all zero; weights take no gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows = gradient.flatten(0, -2)
        if bool(rows[0].any()):  # as nearly everywhere; looking at every row would cost a pass over all
            return gradient @ ctx.weight, None, None
        live = rows.any(dim=-1).nonzero().flatten()
        some = rows.new_zeros(-(-len(live) // _BLOCK) * _BLOCK, rows.shape[1])
        some[: len(live)] = rows[live]
        result = rows.new_zeros(len(rows), ctx.weight.shape[1])
        result[live] = (some @ ctx.weight)[: len(live)]
        return result.view(*gradient.shape[:-1], -1), None, None


@contextmanager
def live_rows_only(layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within it, plain linear modules on the CPU skip zero rows in the backward pass, to the same result.

    Looking at a row would make a GPU wait, which costs more than it saves there. Quantized layers, those that something
    else has wrapped already, and any layer under autocast stay as they are too.
    """
    plain = [
        module
        for module in layers.values()
        if type(module) is nn.Linear
        and module.weight.device.type == "cpu"
        and "forward" not in vars(module)
        and not torch.is_autocast_enabled("cpu")
    ]
    for module in plain:
        module.forward = _forward(module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in plain:
            del module.forward


def _forward(module: nn.Linear):  # type: ignore[no-untyped-def]
    return lambda inputs: _LiveRows.apply(inputs, module.weight, module.bias)
