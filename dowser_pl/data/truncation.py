"""Long rows lose text at their end, and never an image token: the model would not know where to put the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

IGNORED = -100
_PER_TOKEN = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask", "labels"}


def truncate(batch: dict[str, Any], is_image: torch.Tensor, max_length: int | None, ids: Sequence[str]) -> list[bool]:
    """Drop the columns beyond `max_length`, in place; they are text or padding, because padding is on the right.

    An encoder-decoder has labels of their own length, to which the limit applies too.

    Args:
        batch: of B right-padded rows of T tokens, with `labels`.
        is_image: (B, T) bool, the image tokens.
        max_length: the limit; None = no limit.
        ids: of the rows, for the message.

    Returns:
        Per row, whether it lost text.

    Raises:
        ValueError: a row has image tokens beyond the limit.
    """
    keys = _PER_TOKEN & batch.keys()
    if max_length is None or all(batch[key].shape[1] <= max_length for key in keys):
        return [False] * len(ids)
    for row, images in zip(ids, is_image, strict=True):
        if images[max_length:].any():
            raise ValueError(
                f"{row}: its {int(images.sum())} image tokens end at token {int(images.nonzero()[-1]) + 1}, beyond "
                f"max_length={max_length}. Image tokens are never cut: raise max_length, use fewer or smaller images, "
                "or put the images first."
            )
    lost = batch["attention_mask"].sum(dim=1) > max_length
    lost |= (batch["labels"][:, max_length:] != IGNORED).any(dim=1)
    for key in keys:
        batch[key] = batch[key][:, :max_length]
    return [bool(row) for row in lost]
