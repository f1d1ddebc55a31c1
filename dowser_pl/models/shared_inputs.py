"""Which matrices of a model take in one and the same tensor, as q, k and v of a decoder layer do."""

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dowser_pl.models.layers import text_inputs, text_model

__all__ = ["input_owners"]


def input_owners(network: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Find it by a forward pass of two tokens on the meta device, where a model of the same config has no weights.

    As where inputs are measured, matrices share one if they are handed the same tensor one right after another. A
    model that looks at values on its way, and one that demands more than text, cannot be run so; each of its matrices
    is then by itself.

    Args:
        network: whose class and config alone are looked at; it may have adapters, be packed or sharded.
        names: run-time names of its matrices, as they are without adapters.

    Returns:
        Name -> the first matrix that takes in what it does.
    """
    owners = {name: name for name in names}
    last: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            if not last or last[-1][1] is not inputs[0]:
                last[:] = [(name, inputs[0])]
            found.setdefault(name, last[-1][0])

        return before

    found: dict[str, str] = {}
    config = deepcopy(network.config)
    config._attn_implementation = "eager"  # others may need a GPU
    try:
        with torch.device("meta"), torch.no_grad():
            empty = type(network)(config).eval()
            for name in owners:
                empty.get_submodule(name).register_forward_pre_hook(watch(name))
            text, tokens = text_model(empty), torch.zeros(1, 2, dtype=torch.int64)
            text(**text_inputs(text, tokens, torch.ones_like(tokens)), use_cache=False)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError, LookupError, ImportError):
        return owners
    return owners | found
