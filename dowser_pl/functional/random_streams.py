"""Random streams that belong to a thing (a matrix, a prompt), not to the order in which things are visited."""

import hashlib

import torch

__all__ = ["stream"]


def stream(seed: int, *labels: str | int) -> torch.Generator:
    """A CPU generator fixed by the seed and the labels.

    Args:
        seed: the user's seed.
        labels: what the stream is for, for example `("prompt", 12)`.

    Returns:
        A generator on the CPU, so that every device and every number of ranks draws the same values.
    """
    digest = hashlib.sha256(repr((seed, *labels)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
