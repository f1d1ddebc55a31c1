"""Decoder layers that read pictures by cross-attention, as those of Llama 3.2 Vision; text alone does not enter them.

What their keys and values are made of is no token of the row: a picture is cut into tiles, and each has as many, those
that are left over being padding (Llama Team 2024, arXiv 2407.21783, section 7).

Legend: B rows of a batch, C pictures of a row, N tiles of a picture, P patches of a tile, D features.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

__all__ = ["by_row", "picture_layers", "tiles_of", "tiles_read"]


def tiles_of(inputs: Mapping[str, Any]) -> Tensor | None:
    """Which tiles some token of a row may look at; neither padding of a picture nor a picture that is padding.

    Args:
        inputs: of the model; its `cross_attention_mask` is (B, T, C, N).

    Returns:
        (B, C, N) bool; None where the model has no such mask.
    """
    mask = inputs.get("cross_attention_mask")
    return None if mask is None else mask.bool().any(1)


def picture_layers(model: PreTrainedModel) -> list[int]:
    """Numbers of the decoder layers that run where there is a picture, and not else; empty for most families."""
    return list(getattr(model.config.get_text_config(decoder=True), "cross_attention_layers", None) or [])


def _reads_tiles(name: str) -> bool:
    return name.split(".")[-2:] in (["cross_attn", "k_proj"], ["cross_attn", "v_proj"])


def by_row(name: str, values: Tensor, tiles: Tensor | None) -> Tensor:
    """What a matrix takes in or gives out, tiles of a row side by side.

    Args:
        name: of the matrix, at run time.
        values: (B * C * N, P, D) where it reads tiles; others come back as they are.
        tiles: (B, C, N), see `tiles_of`; None = the model has none.

    Returns:
        (B, C * N * P, D).
    """
    return values.reshape(len(tiles), -1, values.shape[-1]) if tiles is not None and _reads_tiles(name) else values


def tiles_read(name: str, length: int, tiles: Tensor | None) -> Tensor | None:
    """Which positions are those of tiles that there are.

    Args:
        name: of the matrix, at run time.
        length: C * N * P.
        tiles: (B, C, N), see `tiles_of`; None = the model has none.

    Returns:
        (B, C * N * P) bool; None where the matrix reads no tiles.
    """
    if tiles is None or not _reads_tiles(name):
        return None
    each = tiles.flatten(1)
    return torch.repeat_interleave(each, length // each.shape[1], dim=1)
