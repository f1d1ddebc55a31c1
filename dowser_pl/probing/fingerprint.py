"""A fingerprint of a model's weights: what the importance cache is keyed by."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

__all__ = ["fingerprint"]


def fingerprint(model: nn.Module) -> str:
    """Content hash of every parameter and persistent buffer: names, shapes, dtypes and bytes.

    Costs one read of the weights (about a second per gigabyte and core) and host memory for a tensor per core.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    state = model.state_dict()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets go of Python's lock
        digests = pool.map(_digest, state, state.values())
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def _digest(name: str, tensor: Tensor) -> str:
    value = tensor.detach().contiguous().cpu()
    digest = hashlib.sha256(f"{name}|{tuple(value.shape)}|{value.dtype}|".encode())
    if value.numel():
        digest.update(value.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
