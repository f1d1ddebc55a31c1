"""Masks as things: how many entries they have, how much two overlap, how they are stored. True = trainable.

Masks that contain one another are one number per entry of the largest: by how many of the smaller it is left out.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from dowser_pl.errors import DowserError

__all__ = [
    "PackedMasks",
    "chosen",
    "from_rows",
    "jaccard",
    "left_out",
    "num_trainable",
    "pack",
    "to_rows",
    "unpack",
    "up_to",
]


def num_trainable(update_ratio: float, numel: int) -> int:
    """How many of `numel` entries an update ratio leaves trainable: `round(update_ratio * numel)`.

    Raises:
        DowserError: if the ratio is outside [0, 1] (NaN included).
    """
    if not 0.0 <= update_ratio <= 1.0:
        raise DowserError(
            f"update_ratio is the trainable share of each matrix and must lie in [0, 1], got {update_ratio}; "
            "0.1 trains the least important tenth"
        )
    return round(update_ratio * numel)


def jaccard(first: Tensor, second: Tensor) -> float:
    """Overlap of two masks, intersection over union, in [0, 1]; two empty masks overlap fully."""
    union = int(torch.count_nonzero(first | second))
    return int(torch.count_nonzero(first & second)) / union if union else 1.0


def pack(mask: Tensor) -> Tensor:
    """Bool mask -> uint8 bits, first entry in the lowest bit; `ceil(numel / 8)` bytes on the CPU."""
    flat = mask.detach().reshape(-1).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=flat.device)).sum(dim=1, dtype=torch.uint8).cpu()


def unpack(bits: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Masks from their bits, the inverse of `pack`.

    Raises:
        DowserError: if the number of bytes does not fit the shape.
    """
    numel = torch.Size(shape).numel()
    if bits.numel() != -(-numel // 8):
        raise DowserError(f"a mask of shape {tuple(shape)} needs {-(-numel // 8)} bytes, got {bits.numel()}")
    expanded = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return expanded.flatten()[:numel].bool().view(shape)


def to_rows(bits: Tensor, shape: torch.Size | tuple[int, int]) -> Tensor:
    """What `pack` gave for an (O, I) mask with each row padded to bytes: (O, ceil(I / 8)) uint8."""
    rows, columns = shape
    if columns % 8 == 0:  # nothing to pad
        return bits.view(rows, columns // 8)
    return pack(torch.nn.functional.pad(unpack(bits, shape), (0, -columns % 8))).view(rows, -(-columns // 8))


def from_rows(rows: Tensor, columns: int) -> Tensor:
    """Inverse of `to_rows`, also for some of the rows."""
    if columns % 8 == 0:
        return rows.reshape(-1)
    return pack(unpack(rows.reshape(-1), (len(rows), 8 * rows.shape[1]))[:, :columns])


class PackedMasks(Mapping[str, Tensor]):
    """Masks by name, kept as bits in host memory and unpacked one at a time when asked for.

    Attributes:
        bits: name -> what `pack` gave.
    """

    def __init__(self) -> None:
        self.bits: dict[str, Tensor] = {}
        self._places: dict[str, tuple[torch.Size, torch.device]] = {}

    @classmethod
    def of(cls, masks: Iterable[tuple[str, Tensor]]) -> "PackedMasks":
        """Pack bool masks as they come, so that no two of them need exist."""
        packed = cls()
        for name, mask in masks:
            packed.put(name, pack(mask), mask.shape, mask.device)
        return packed

    def put(self, name: str, bits: Tensor, shape: torch.Size, device: torch.device) -> None:
        """Keep the bits of a mask of this shape, to be unpacked on this device."""
        self.bits[name] = bits
        self._places[name] = shape, device

    def __getitem__(self, name: str) -> Tensor:
        shape, device = self._places[name]
        return unpack(self.bits[name].to(device), shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)


def left_out(outer: Tensor, inner: Tensor) -> Tensor:
    """Which entries of a mask a smaller one inside it does not hold.

    Args:
        outer: (O, I) bool with k True.
        inner: (O, I) bool.

    Returns:
        (k,) bool on the CPU, in the order of the entries of `outer`.

    Raises:
        DowserError: if `inner` holds an entry that `outer` does not.
    """
    inner = inner.to(outer.device)
    stray = int(torch.count_nonzero(inner & ~outer))
    if stray:
        raise DowserError(
            f"{stray} entries of the smaller mask are not in the larger one, expected masks of one score at rising "
            "update ratios, of which each contains those before it"
        )
    return (~inner[outer]).cpu()


def up_to(outer: Tensor, levels: Tensor, level: int) -> Tensor:
    """The mask of the entries of `outer` whose level is at most `level`; none for -1.

    Args:
        outer: (O, I) bool with k True.
        levels: (k,) integers.
        level: the highest to be kept.
    """
    return outer.masked_scatter(outer, chosen(levels, level).to(outer.device))


def chosen(levels: Tensor, level: int) -> Tensor:
    """(k,) bool: which of `levels` (k,) are at most `level`."""
    return levels.int() <= level  # bytes have no -1: the comparison would turn it into 255
