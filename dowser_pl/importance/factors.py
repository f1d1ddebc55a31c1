"""What the importance pass leaves behind: two thin factors per matrix.

Rows belong to prompts, and a prompt's row depends on its number alone: factors of more prompts continue those of
fewer, and factors of several processes are put together in order.

Legend: N rows, one per prompt or per group of prompts; O outputs, I inputs of a matrix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.scores import group_means
from dowser_pl.importance.recorder import FACTORS

__all__ = ["Factors", "Statistics", "in_order", "joined"]

Statistics = dict[str, dict[str, Tensor]]
"""Matrix -> statistic -> tensor. Matrices with the same input share one activation tensor."""


@dataclass(frozen=True)
class Factors:
    """Statistics of every matrix, float32 on the CPU.

    Attributes:
        layers: run-time name of the matrix -> `activation` (N, I), `abs_gradient` and `square_gradient` (N, O),
            `token_product` and `weight_square` (O, I): those that were measured.
        num_prompts: how many prompts they come from.
        prompts_per_row: how many prompts one row is the mean of; the last row may have fewer.
    """

    layers: Statistics
    num_prompts: int
    prompts_per_row: int = 1

    @property
    def statistics(self) -> frozenset[str]:
        """The names of what was measured."""
        return frozenset().union(*self.layers.values())

    @property
    def factorised(self) -> bool:
        """Whether all statistics have one row per prompt or group, so that rows can be added and left out."""
        return self.statistics <= set(FACTORS)

    def checked(self) -> "Factors":
        """Itself, if every number is float32 and finite.

        Raises:
            DowserError: naming the matrix; NaN or infinity come from overflow in half precision.
        """
        for name, layer in self.layers.items():
            for statistic, value in layer.items():
                if value.dtype != torch.float32:
                    raise DowserError(f"{statistic.replace('_', ' ')} of {name}: got {value.dtype}, expected float32")
                # a sum is not finite where an entry is not, and costs a fifth of looking at each
                if not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):
                    raise DowserError(
                        f"the importance pass gave a {statistic.replace('_', ' ')} of {name} that is not finite; "
                        "use model.dtype bfloat16 or float32 for this model"
                    )
        return self

    def grouped(self, prompts_per_row: int) -> "Factors":
        """Means over groups of prompts; see `dowser_pl.functional.scores.group_means`.

        Raises:
            DowserError: if the rows are groups of another size already.
        """
        if prompts_per_row == self.prompts_per_row or not self.factorised:
            return self
        if self.prompts_per_row != 1:
            raise DowserError(f"rows of {self.prompts_per_row} prompts cannot be made rows of {prompts_per_row}")
        grouped = _map(self.layers, lambda value: group_means(value, prompts_per_row))
        return replace(self, layers=grouped, prompts_per_row=prompts_per_row)

    def first(self, num_prompts: int) -> "Factors":
        """The complete rows among the first `num_prompts` prompts; all rows if there are just so many prompts.

        Nothing, of statistics that are sums over another number of prompts.
        """
        if num_prompts == self.num_prompts:
            return self
        if not self.factorised:
            return replace(self, layers={}, num_prompts=0)
        rows = min(num_prompts, self.num_prompts) // self.prompts_per_row
        kept = _map(self.layers, lambda value: value[:rows])
        return replace(self, layers=kept, num_prompts=rows * self.prompts_per_row)

    def followed_by(self, more: "Factors") -> "Factors":
        """Factors with the rows of these and then those of `more`."""
        if not self.num_prompts:
            return more
        layers = joined([self.layers, more.layers])
        return replace(self, layers=layers, num_prompts=self.num_prompts + more.num_prompts)


def joined(parts: Sequence[Statistics]) -> Statistics:
    """Rows of all parts, one after the other; tensors that were shared in every part are shared again."""
    memo: dict[tuple[int, ...], Tensor] = {}
    layers: Statistics = {}
    for name, statistics in parts[0].items() if parts else ():
        layers[name] = {}
        for statistic in statistics:
            tensors = [part[name][statistic] for part in parts]
            key = tuple(id(tensor) for tensor in tensors)
            if key not in memo:
                memo[key] = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
            layers[name][statistic] = memo[key]
    return layers


def in_order(layers: Statistics, numbers: Sequence[int]) -> Statistics:
    """Rows that were measured in another order, by their numbers.

    Args:
        layers: (N, ...) each.
        numbers: (N,) what each row is the number of; nothing is copied where they rise.
    """
    if list(numbers) == sorted(numbers):
        return layers
    places = torch.tensor(numbers).argsort()
    return _map(layers, lambda value: value[places])


def _map(layers: Statistics, function: Callable[[Tensor], Tensor]) -> Statistics:
    memo: dict[int, Tensor] = {}
    for statistics in layers.values():
        for value in statistics.values():
            if id(value) not in memo:
                memo[id(value)] = function(value)
    return {name: {s: memo[id(value)] for s, value in statistics.items()} for name, statistics in layers.items()}
