"""Who competes with whom: the update ratio of one matrix, of one decoder layer, or of the whole model."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from dowser_pl.functional.masks import num_trainable
from dowser_pl.functional.selection import LOCAL, Reducer, lowest_of_pieces
from dowser_pl.methods.base import AfterFit, BeforeFit, Layer, Ranking
from dowser_pl.methods.half_fine_tuning import HalfFineTuning

__all__ = ["build_masks"]


def build_masks(
    method: BeforeFit | AfterFit,
    blocks: Mapping[str, str],
    layer_of: Callable[[str], Layer],
    reducer: Reducer = LOCAL,
) -> Iterator[tuple[str, Tensor]]:
    """The mask of every matrix, one at a time.

    Where several matrices compete every score is computed three times (twice for the threshold, once for the mask), and
    never more than one matrix of scores is held.

    Args:
        method: decides.
        blocks: name of each matrix -> name of the decoder layer it sits in, in model order.
        layer_of: hands over a matrix and its measurements by name.
        reducer: where each process holds a part of every matrix: the masks are those of these parts, together the same
            as one process would find. All processes must ask for every mask.

    Yields:
        (name, (O, I) bool mask), every name once.
    """
    if isinstance(method, HalfFineTuning):
        trained = method.trained(blocks)
        for name in blocks:
            layer = layer_of(name)
            yield name, layer.meant(torch.full_like(layer.weight, name in trained, dtype=torch.bool))
        return
    if not isinstance(method, Ranking) or (method.scope == "matrix" and reducer is LOCAL):
        for name in blocks:
            layer = layer_of(name)
            yield name, layer.meant(method.mask(layer))
        return
    if method.scope == "matrix":
        for name in blocks:
            layer = layer_of(name)
            scores = [_scores(method, layer)]
            k = num_trainable(method.update_ratio, layer.num_entries)
            yield name, next(lowest_of_pieces([partial(scores.__getitem__, 0)], k, reducer))
        return
    groups: dict[str, list[str]] = {}
    for name, block in blocks.items():
        groups.setdefault(block if method.scope == "layer" else "", []).append(name)
    for names in groups.values():
        total = sum(layer_of(name).num_entries for name in names)
        pieces = [lambda name=name: _scores(method, layer_of(name)) for name in names]
        masks = lowest_of_pieces(pieces, num_trainable(method.update_ratio, total), reducer)
        yield from zip(names, masks, strict=True)


def _scores(method: Ranking, layer: Layer) -> Tensor:
    return layer.meant(method.score(layer))
