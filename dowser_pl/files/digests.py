"""Content hashes of tensors: two tensors with one digest hold the same bits."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

__all__ = ["combined", "digest", "digests", "num_hashed_together"]

_MOST_THREADS = 8  # each thread may hold a copy of a tensor, and eight outrun memory


def digest(tensor: Tensor) -> str:
    """SHA-256 over shape, dtype and bytes, 64 hexadecimal digits; -0.0 and 0.0 differ, NaN equals itself."""
    value = tensor.detach().contiguous().cpu()
    content = hashlib.sha256(f"{tuple(value.shape)}|{value.dtype}|".encode())
    if value.numel():
        content.update(value.view(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def digests(tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None) -> dict[str, str]:
    """`digest` of each, converted to `dtypes` first where these are given.

    Costs one read (about a second per gigabyte and core) and host memory for a tensor per core, of 8 at most.
    """
    with ThreadPoolExecutor(num_hashed_together()) as pool:  # hashing lets go of Python's lock
        kinds = dtypes or {}
        found = pool.map(lambda name: digest(tensors[name].to(kinds.get(name, tensors[name].dtype))), tensors)
        return dict(zip(tensors, found, strict=True))


def combined(named: Mapping[str, str] | Iterable[tuple[str, str]]) -> str:
    """One digest of named digests, in whatever order they come."""
    lines = [f"{name} {value}\n" for name, value in sorted(dict(named).items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def num_hashed_together() -> int:
    """Threads that hash: cores that this process may use, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)
