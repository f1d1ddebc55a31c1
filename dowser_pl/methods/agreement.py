"""How far masks agree: those of two halves of the prompts (have enough been asked?), and those of |W| alone."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from dowser_pl.functional.masks import jaccard, num_trainable
from dowser_pl.functional.selection import lowest
from dowser_pl.methods.base import Layer, Method, Ranking, Scored
from dowser_pl.methods.magnitude import Magnitude

__all__ = ["Agreement", "magnitude_overlap", "rank_correlation", "sample_rows", "split_half"]

_ENTRIES = 1 << 18  # of a matrix that are compared; smaller matrices are compared whole
_RANKED = 1 << 14
_FACTORS = ("activation", "abs_gradient", "square_gradient")


@dataclass(frozen=True)
class Agreement:
    """How far two halves of the prompts agree, mean over matrices.

    Attributes:
        overlap: Jaccard index of the two masks of trainable entries, in [0, 1].
        rank_correlation: Spearman's, of all scores.
    """

    overlap: float
    rank_correlation: float

    def __str__(self) -> str:
        return f"mask overlap {self.overlap:.3f}, rank correlation {self.rank_correlation:.4f}"

    def as_dict(self) -> dict[str, float]:
        """The numbers by name, for reports."""
        return {f"split_half_{name}": value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, numbers: Mapping[str, float]) -> "Agreement":
        """Read what `as_dict` gave."""
        return cls(**{name.removeprefix("split_half_"): value for name, value in numbers.items()})


def split_half(method: Scored, layers: Iterable[Layer]) -> Agreement | None:
    """Agreement of the even and the odd rows of the factors, matrix by matrix.

    A mask from all prompts is better than one from half of them, so this is a lower bound on how well the mask
    would be reproduced by other prompts. Large matrices are represented by 262,144 entries in evenly spaced rows.

    Args:
        method: scores.
        layers: matrices with their factors.

    Returns:
        None where there is nothing to split: fewer than two rows, or statistics that do not factorise.
    """
    overlaps, correlations = [], []
    for layer in layers:
        part = sample_rows(layer)
        halves = [_half(part, first) for first in (0, 1)]
        if any(half is None for half in halves):
            return None
        scores = [method.score(half) for half in halves if half is not None]
        k = num_trainable(method.update_ratio, scores[0].numel())
        overlaps.append(jaccard(lowest(scores[0], k), lowest(scores[1], k)))
        correlations.append(rank_correlation(*scores))
    if not overlaps:
        return None
    return Agreement(sum(overlaps) / len(overlaps), sum(correlations) / len(correlations))


def magnitude_overlap(method: Method, layers: Iterable[Layer]) -> dict[str, float]:
    """How much of a mask the smallest |W| would have given too (Jaccard, mean over matrices), by name for reports.

    Computed matrix by matrix whatever the scope; large matrices are represented as in `split_half`. Empty for
    methods without scores and for Magnitude itself.
    """
    if not isinstance(method, Ranking) or isinstance(method, Magnitude):
        return {}
    smallest = Magnitude(method.update_ratio)
    overlaps = [jaccard(method.mask(part), smallest.mask(part)) for part in map(sample_rows, layers)]
    return {"mask_overlap_with_magnitude": sum(overlaps) / len(overlaps)}


def sample_rows(layer: Layer) -> Layer:
    """The layer itself if it is small, else one of evenly spaced output rows; for diagnostics."""
    outputs, inputs = layer.weight.shape
    step = max(1, -(-outputs * inputs // _ENTRIES))
    if step == 1:
        return layer
    rows: dict[str, Tensor | None] = {
        name: None if (value := getattr(layer, name)) is None else value[..., ::step]
        for name in ("abs_gradient", "square_gradient")
    }
    entries: dict[str, Tensor | None] = {
        name: None if (value := getattr(layer, name)) is None else value[::step]
        for name in ("weight", "token_product", "weight_square", "tuned")
    }
    return replace(layer, **rows, **entries)  # type: ignore[arg-type]


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two score matrices, on at most 16,384 evenly spaced entries of each.

    Ties rank by index. Scores that are all equal (a matrix of zeros) agree fully.
    """
    step = max(1, -(-first.numel() // _RANKED))
    ranks = [scores.flatten()[::step].argsort(stable=True).argsort().double() for scores in (first, second)]
    if len(ranks[0]) < 2:
        return 1.0
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def _half(layer: Layer, first: int) -> Layer | None:
    rows = {name: value[first::2] for name in _FACTORS if (value := getattr(layer, name)) is not None}
    if not rows or any(not len(value) for value in rows.values()):
        return None
    return replace(layer, **rows)
