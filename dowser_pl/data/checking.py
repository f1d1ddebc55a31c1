"""Which rows are encoded before anything long begins, to find those that cannot be."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from PIL import Image

from dowser_pl.data.images import ImageBytes, ImageFile
from dowser_pl.data.rows import Conversation, Question

Check = Literal["first", "all", "none"]

_SPREAD = 512  # rows that are looked at, evenly spread over the file
_LONGEST = 32  # rows that are looked at because they have most bytes
_UNREADABLE = 16  # rows that are checked because not even that could be done
_EACH = 2  # rows that are checked for each kind of extreme


def rows_to_check(rows: Sequence[Conversation] | Sequence[Question], check: Check, first: Sequence[int]) -> list[int]:
    """Numbers of the rows to encode.

    Args:
        rows: all of them.
        check: all, none, or those of `first` and the extremes: most text, most images, the largest image and the
            longest strip. Of a large file only some rows are looked at for these, and of images only their heads.
        first: the rows that come first.
    """
    if check == "none":
        return []
    if check == "all":
        return list(range(len(rows)))
    return list(dict.fromkeys([*first, *_extremes(rows)]))


def _extremes(rows: Sequence[Conversation] | Sequence[Question]) -> list[int]:
    measured: dict[int, tuple[float, ...]] = {}
    unreadable = []
    for number in _looked_at(rows):
        try:
            measured[number] = _measure(rows[number])
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
            unreadable.append(number)
    keys: list[Callable[[int], float]] = [lambda number, kind=kind: measured[number][kind] for kind in range(4)]  # type: ignore[misc]
    return unreadable[:_UNREADABLE] + [number for key in keys for number in sorted(measured, key=key)[-_EACH:]]


def _looked_at(rows: Sequence[Any]) -> list[int]:
    spread = range(0, len(rows), max(len(rows) // _SPREAD, 1))
    sizes: torch.Tensor | None = getattr(rows, "sizes", None)
    longest = [] if sizes is None else sizes.topk(min(_LONGEST, len(sizes))).indices.tolist()
    return sorted({*spread, *longest})


def _measure(row: Conversation | Question) -> tuple[float, ...]:
    """Characters, images, pixels of the largest image, and its longer side by its shorter one at worst."""
    texts = [part["text"] for message in row.messages for part in message["content"] if part["type"] == "text"]
    sides = [size for source in row.images if (size := _size(source)) is not None]
    pixels = max((width * height for width, height in sides), default=0)
    strip = max((max(size) / max(min(size), 1) for size in sides), default=0)
    return sum(map(len, texts)), len(row.images), pixels, strip


def _size(source: Any) -> tuple[int, int] | None:
    """(width, height) where that costs little."""
    if isinstance(source, Image.Image):
        return source.size
    if not isinstance(source, ImageFile | ImageBytes):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decoding decides
        with Image.open(source.path if isinstance(source, ImageFile) else io.BytesIO(source.content)) as image:
            return image.size
