"""Exactly the k lowest scores, by a radix select on the float bit pattern.

The bits of non-negative floats order like the floats, so a histogram of the first few, another of the next few below
the bin that holds the k-th, and so on, give the exact k-th value without sorting. Histograms add up: scores may come in
pieces, be they matrices that compete for one count or shards of one matrix on several ranks, and no more than one piece
is ever held. Ties are broken by position, pieces in order, so the count is exact on coarse scores too, where
`score <= kthvalue` would keep every tie.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dowser_pl.errors import DowserError

__all__ = [
    "LOCAL",
    "Prefix",
    "Reducer",
    "Threshold",
    "count_ties",
    "find_threshold",
    "highest",
    "highest_of_parts",
    "histogram",
    "lowest",
    "lowest_of_pieces",
    "ordered_bits",
    "reversed_order",
    "signed_order",
    "take",
]


class Reducer(Protocol):
    """How the parts of a piece that lie on other processes are counted too."""

    def all_reduce(self, counts: Tensor) -> Tensor:
        """Counts summed over the processes."""

    def exclusive_sum(self, count: int) -> tuple[int, int]:
        """The sum of a count over the processes that hold earlier parts, and over all."""

    def all_gather(self, values: Tensor) -> Tensor:
        """(P, n) what all P processes have of these (n,), each in a row."""


class LocalReducer:
    """Every piece is here as a whole."""

    def all_reduce(self, counts: Tensor) -> Tensor:
        """The counts as they are, since nobody else counts."""
        return counts

    def exclusive_sum(self, count: int) -> tuple[int, int]:
        """Zero and the count, since nothing lies before."""
        return 0, count

    def all_gather(self, values: Tensor) -> Tensor:
        """The values as the only row."""
        return values[None]


LOCAL = LocalReducer()


_CHUNK = 1 << 22  # entries per histogram pass: bounds the temporaries to tens of megabytes
_ON_GPU = 16  # times as many there, which keeps it busy
_BITS = 31  # of a non-negative float32
# Bits that are known -> how many the next histogram looks at. Few passes over memory are cheapest on a CPU; a GPU
# counts fast where all bins fit the memory that its threads share.
_WIDTHS = {0: 15, 15: 16}
_WIDTHS_ON_GPU = {0: 11, 11: 10, 21: 10}
_INFINITY = 0x7F800000  # the bits of float32's, the highest of all


@dataclass(frozen=True)
class Prefix:
    """The first bits of the threshold.

    Attributes:
        known: how many of the 31.
        value: of these.
    """

    known: int = 0
    value: int = 0


@dataclass(frozen=True)
class Threshold:
    """The score at which a selection ends.

    Attributes:
        bits: all entries of lower bits are taken.
        ties: of those with exactly these bits, the first so many are taken too.
        equal: how many have exactly these bits.
    """

    bits: int
    ties: int
    equal: int


def lowest(scores: Tensor, k: int) -> Tensor:
    """Mask of exactly the `k` lowest scores, ties going to the lower flat index.

    Args:
        scores: any shape, float, all >= 0 and not NaN; compared in float32.
        k: number of True entries wanted, 0 <= k <= scores.numel().

    Returns:
        Bool tensor of the shape of `scores` with exactly `k` True.

    Raises:
        DowserError: if k is out of range or a score is negative or NaN.
    """
    _check(k, scores.numel())
    if k in (0, scores.numel()):
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    bits = ordered_bits(scores)
    return take(bits, find_threshold(lambda prefix: histogram(bits, prefix), k)).view(scores.shape)


def highest(scores: Tensor, k: int) -> Tensor:
    """Mask of exactly the `k` highest scores, ties going to the lower flat index; else as `lowest`."""
    return lowest(reversed_order(scores), k)


def highest_of_parts(scores: Tensor, count: Callable[[int], int], reducer: Reducer = LOCAL) -> Tensor:
    """Mask of the highest scores of a whole, of which each process may hold a part; else as `highest`.

    Args:
        scores: of what is here, in the order of the processes.
        count: how many entries are wanted of the number of all.
        reducer: where there are other parts; all processes must call this.

    Returns:
        Bool tensor of the shape of `scores`.
    """
    if reducer is LOCAL:
        return highest(scores, count(scores.numel()))
    total = int(reducer.all_reduce(torch.tensor([scores.numel()])))
    reverse = reversed_order(scores)
    return next(lowest_of_pieces([lambda: reverse], count(total), reducer))


def lowest_of_pieces(
    pieces: Sequence[Callable[[], Tensor]],
    k: int,
    reducer: Reducer = LOCAL,
) -> Iterator[Tensor]:
    """Masks of exactly the `k` lowest scores of all pieces together, ties going to the earlier piece and index.

    Args:
        pieces: each computes its scores anew whenever it is called (three times), so that only one is held.
        k: entries wanted over all pieces.
        reducer: where each process holds a part of every piece, of consecutive flat positions; the masks are those of
            these parts. All processes must ask for every mask.

    Yields:
        One bool mask per piece, in order.

    Raises:
        DowserError: if k is out of range or a score is negative or NaN.
    """

    def sum_over_pieces(prefix: Prefix) -> Tensor:
        mine = [histogram(ordered_bits(piece()), prefix).cpu() for piece in pieces]
        return reducer.all_reduce(torch.stack(mine).sum(0))

    top = sum_over_pieces(Prefix())
    _check(k, int(top.sum()))
    threshold = find_threshold(lambda prefix: sum_over_pieces(prefix) if prefix.known else top, k)
    before = 0
    for piece in pieces:
        scores = piece()
        bits = ordered_bits(scores)
        earlier, all_of_piece = 0, 0
        if threshold.ties < threshold.equal:
            earlier, all_of_piece = reducer.exclusive_sum(count_ties(bits, threshold))
        yield take(bits, threshold, before + earlier).view(scores.shape)
        before += all_of_piece


def ordered_bits(scores: Tensor) -> Tensor:
    """Flat int32 patterns that order like the scores.

    Raises:
        DowserError: if a score is negative or NaN.
    """
    flat = scores.detach().float().reshape(-1)
    lowest_score = flat.min() if flat.numel() else flat.sum()  # NaN if there is one
    if not bool(lowest_score >= 0):
        raise DowserError("scores must be non-negative numbers, got a negative one or NaN")
    bits = flat.view(torch.int32)
    return bits if bool(lowest_score > 0) else bits & 0x7FFFFFFF  # -0.0, whose bits would sort last


def reversed_order(scores: Tensor) -> Tensor:
    """Scores that order exactly the other way round: their bits count down from those of infinity.

    Nothing is rounded away, as in `1 / scores` or `max - scores`: two scores tie after it only if they did before.

    Args:
        scores: any shape, float, all >= 0 and not NaN; compared in float32.

    Returns:
        float32 >= 0 of the same shape; 0 becomes infinity and infinity 0.

    Raises:
        DowserError: if a score is negative or NaN.
    """
    return (_INFINITY - ordered_bits(scores)).view(torch.float32).view(scores.shape)


def signed_order(values: Tensor) -> Tensor:
    """Scores that order like numbers of any sign, but for the last bit of these.

    A sign more is a bit less: two numbers tie after it only if they are one number or neighbours in float32.

    Args:
        values: any shape, float, not NaN; compared in float32.

    Returns:
        float32 >= 0 of the same shape; minus infinity becomes 0, infinity stays.

    Raises:
        DowserError: if a value is NaN.
    """
    size = ordered_bits(values.abs()).view(values.shape) >> 1
    return ((_INFINITY >> 1) + size * values.sign().int()).view(torch.float32)


def histogram(bits: Tensor, prefix: Prefix = Prefix()) -> Tensor:
    """Counts of the next few bits among the entries that begin with a prefix.

    Args:
        bits: `ordered_bits`.
        prefix: nothing at first.

    Returns:
        int64, a power of two of them: one bin per value of the bits that follow the prefix.
    """
    on_cpu = bits.device.type == "cpu"
    width = (_WIDTHS if on_cpu else _WIDTHS_ON_GPU)[prefix.known]
    counts = torch.zeros(1 << width, dtype=torch.int64, device=bits.device)
    for chunk in bits.split(_CHUNK if on_cpu else _CHUNK * _ON_GPU):
        here = chunk[chunk >> (_BITS - prefix.known) == prefix.value] if prefix.known else chunk
        digits = here >> (_BITS - prefix.known - width)
        counts += torch.bincount(digits & (1 << width) - 1 if prefix.known else digits, minlength=1 << width)
    return counts


def find_threshold(histogram_of: Callable[[Prefix], Tensor], k: int) -> Threshold:
    """The threshold of the `k` lowest, from histograms summed over all pieces or ranks.

    Args:
        histogram_of: called with longer and longer prefixes of it; see `histogram`.
        k: entries wanted, at least 0 and at most as many as there are.
    """
    if k == 0:
        return Threshold(0, 0, 0)
    prefix, rank, equal = Prefix(), k, 0
    while prefix.known < _BITS:
        counts = histogram_of(prefix)
        width = len(counts).bit_length() - 1
        digit, rank, equal = _descend(counts, rank)
        prefix = Prefix(prefix.known + width, prefix.value << width | digit)
    return Threshold(prefix.value, rank, equal)


def _descend(counts: Tensor, rank: int) -> tuple[int, int, int]:
    """The bin that holds the rank-th entry (from 1), its rank within the bin, and the size of the bin."""
    below = counts.cumsum(0)
    digit = int(torch.searchsorted(below, rank))
    size = int(counts[digit])
    return digit, rank - (int(below[digit]) - size), size


def count_ties(bits: Tensor, threshold: Threshold) -> int:
    """How many entries of a piece lie exactly on the threshold."""
    return int(torch.count_nonzero(bits == threshold.bits))


def take(bits: Tensor, threshold: Threshold, ties_before: int = 0) -> Tensor:
    """The mask of one piece.

    Args:
        bits: its `ordered_bits`.
        threshold: of all pieces together.
        ties_before: entries on the threshold in the pieces (or shards) before this one.
    """
    if threshold.ties == threshold.equal:  # every tie is taken: one comparison does it
        return bits <= threshold.bits if threshold.equal else torch.zeros_like(bits, dtype=torch.bool)
    mask = bits < threshold.bits
    left = max(0, threshold.ties - ties_before)
    mask[(bits == threshold.bits).nonzero().flatten()[:left]] = True
    return mask


def _check(k: int, numel: int) -> None:
    if not 0 <= k <= numel:
        raise DowserError(f"cannot select {k} of {numel} entries")
