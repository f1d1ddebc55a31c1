"""Which positions of its input a matrix reads where those are no tokens of the row: a Q-Former's, tiles of pictures.

Decoder layers that read pictures by cross-attention, as those of Llama 3.2 Vision, make keys and values of no token of
the row: a picture is cut into tiles, and each has as many, those that are left over being padding (Llama Team 2024,
arXiv 2407.21783, section 7).

Legend: B rows of a batch, T tokens, C pictures of a row, N tiles of a picture, P patches of a tile, L positions, D
features.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dowser_pl.models.qformer import QFORMER, positions_read

__all__ = ["InputPositions"]


class InputPositions:
    """Positions that matrices read in one batch, as the inputs of the model tell them.

    Args:
        inputs: of the model. `qformer_attention_mask` (B, T) is 0 where the Q-Former's instruction is padded, and
            `cross_attention_mask` (B, T, C, N) says which tiles a token may look at: none of a padded tile, and none of
            a picture that is padding.
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        self._instruction: Tensor | None = inputs.get("qformer_attention_mask")
        mask = inputs.get("cross_attention_mask")
        self._tiles: Tensor | None = None if mask is None else mask.bool().any(1).flatten(1)

    def by_row(self, name: str, values: Tensor) -> Tensor:
        """What a matrix takes in or gives out, row by row.

        Args:
            name: of the matrix, at run time.
            values: (B * C * N, P, D) where it reads tiles; others come back as they are.

        Returns:
            (B, C * N * P, D) of tiles.
        """
        if self._tiles is None or not _reads_tiles(name):
            return values
        return values.reshape(len(self._tiles), -1, values.shape[-1])

    def real(self, name: str, values: Tensor) -> Tensor | None:
        """Which positions are none of padding.

        Args:
            name: of the matrix, at run time.
            values: (B, L, D) that it takes in or gives out, as `by_row` has them.

        Returns:
            (B, L) bool; None where the matrix reads the tokens of the row, which these inputs say nothing about.
        """
        if QFORMER in name.split("."):
            read = positions_read(name, values.shape[1], self._instruction)
            return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device) if read is None else read
        if self._tiles is None or not _reads_tiles(name):
            return None
        return torch.repeat_interleave(self._tiles, values.shape[1] // self._tiles.shape[1], dim=1)


def _reads_tiles(name: str) -> bool:
    return name.split(".")[-2:] in (["cross_attn", "k_proj"], ["cross_attn", "v_proj"])
