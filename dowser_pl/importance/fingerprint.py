"""A fingerprint of a model's weights: what the importance cache is keyed by."""

from torch import nn

from dowser_pl.distributed.tensors import digests
from dowser_pl.functional.digests import combined

__all__ = ["fingerprint"]


def fingerprint(model: nn.Module) -> str:
    """Content hash of every parameter and persistent buffer: names, shapes, dtypes and bytes.

    Where weights are spread over processes, all must call it.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    return combined(digests(model.state_dict()))
