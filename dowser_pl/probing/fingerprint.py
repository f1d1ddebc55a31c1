"""A fingerprint of a model's weights: what the importance cache is keyed by."""

import hashlib

import torch
from torch import nn

__all__ = ["fingerprint"]


def fingerprint(model: nn.Module) -> str:
    """Content hash of every parameter and persistent buffer: names, shapes, dtypes and bytes.

    Costs one read of the weights (about a second per gigabyte) and host memory for one tensor at a time.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        value = tensor.detach().contiguous().cpu()
        digest.update(f"{name}|{tuple(value.shape)}|{value.dtype}|".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy() if value.numel() else b"")
    return digest.hexdigest()
