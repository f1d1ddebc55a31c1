"""Masks with an exact count: True = trainable.

The k lowest scores are found by a radix select on the float bit pattern: the bits of non-negative floats
order like the floats, so two histograms of 16 bits each give the exact k-th value without sorting. Ties are
broken by index, so the count is exact on coarse scores too, where ``score <= kthvalue`` would keep every tie.

Legend: O outputs, I inputs of a matrix.
"""

import torch
from torch import Tensor

__all__ = ["jaccard", "lowest", "num_trainable", "pack", "unpack"]

_CHUNK = 1 << 22  # entries per histogram pass: bounds the temporaries to tens of megabytes


def num_trainable(update_ratio: float, numel: int) -> int:
    """How many of ``numel`` entries an update ratio leaves trainable: ``round(update_ratio * numel)``.

    Raises:
        ValueError: if the ratio is outside [0, 1] (NaN included).
    """
    if not 0.0 <= update_ratio <= 1.0:
        raise ValueError(
            f"update_ratio is the trainable share of each matrix and must lie in [0, 1], got {update_ratio}; "
            "0.1 trains the least important tenth"
        )
    return round(update_ratio * numel)


def lowest(scores: Tensor, k: int) -> Tensor:
    """Mask of exactly the ``k`` lowest scores, ties going to the lower flat index.

    Args:
        scores: any shape, float, all >= 0 and not NaN; compared in float32.
        k: number of True entries wanted, 0 <= k <= scores.numel().

    Returns:
        Bool tensor of the shape of ``scores`` with exactly ``k`` True.

    Raises:
        ValueError: if k is out of range or a score is negative or NaN.
    """
    if not 0 <= k <= scores.numel():
        raise ValueError(f"cannot select {k} of {scores.numel()} entries")
    if k in (0, scores.numel()):
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    flat = scores.detach().float().reshape(-1)
    if not bool((flat >= 0).all()):
        raise ValueError("scores must be non-negative numbers, got a negative one or NaN")
    bits = (flat + 0.0).view(torch.int32)  # + 0.0 turns -0.0, whose bits sort last, into 0.0
    threshold = _kth_bits(bits, k)
    mask = bits < threshold
    missing = k - int(mask.sum())
    mask[(bits == threshold).nonzero().flatten()[:missing]] = True
    return mask.view(scores.shape)


def _kth_bits(bits: Tensor, k: int) -> int:
    """The k-th smallest (from 1) of non-negative int32 bit patterns."""
    prefix, rank = 0, k
    for shift in (16, 0):
        histogram = torch.zeros(1 << 16, dtype=torch.int64, device=bits.device)
        for chunk in bits.split(_CHUNK):
            inside = chunk if shift else chunk[(chunk >> 16) == prefix]
            histogram += torch.bincount((inside >> shift) & 0xFFFF, minlength=1 << 16)
        below = histogram.cumsum(0)
        digit = int(torch.searchsorted(below, rank))
        rank -= int(below[digit] - histogram[digit])
        prefix = (prefix << 16) | digit
    return prefix


def jaccard(first: Tensor, second: Tensor) -> float:
    """Overlap of two masks, intersection over union, in [0, 1]; two empty masks overlap fully."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def pack(mask: Tensor) -> Tensor:
    """Bool mask -> uint8 bits, first entry in the lowest bit; ``ceil(numel / 8)`` bytes on the CPU."""
    flat = mask.detach().reshape(-1).to("cpu", torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(dim=1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Inverse of :func:`pack`.

    Raises:
        ValueError: if the number of bytes does not fit the shape.
    """
    numel = torch.Size(shape).numel()
    if bits.numel() != -(-numel // 8):
        raise ValueError(f"a mask of shape {tuple(shape)} needs {-(-numel // 8)} bytes, got {bits.numel()}")
    expanded = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return expanded.flatten()[:numel].bool().view(shape)
