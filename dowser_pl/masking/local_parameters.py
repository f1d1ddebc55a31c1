"""Parameters that are trained whole and spread over processes: what is here of them as plain parameters.

An optimizer takes tensors that are spread and such that are not only apart, and entries are not. So it gets what is
here of the former, in the memory of the tensor: what it writes there is written.
"""

from typing import Any

from torch import nn

from dowser_pl.distributed.fsdp1_unit import place_of, put_place
from dowser_pl.distributed.tensors import is_spread, local, when_averaged

__all__ = ["LocalParameters"]


class LocalParameters:
    """One for each parameter that was asked for; gradients go there as soon as they are averaged."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """What an optimizer is to train: itself, where it is not spread."""
        if not is_spread(parameter):
            return parameter
        if id(parameter) not in self._known:
            here = nn.Parameter(local(parameter))

            def take(whole: Any) -> None:
                gradient, whole.grad = local(whole.grad).view_as(here), None
                here.grad = gradient if here.grad is None else here.grad + gradient

            put_place(here, place_of(parameter))
            when_averaged(parameter, take, always=False)
            self._known[id(parameter)] = parameter, here
        return self._known[id(parameter)][1]
