"""Pictures for rows that a model writes: made of noise, of one colour, or of the user's own pictures.

All are PIL images of any size, before a processor sees them. What is drawn comes from the generator alone.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from PIL import Image
from torch import Generator

__all__ = ["MADE_OF_PICTURES", "NUM_PICTURES", "PICTURES", "blank", "mosaic", "noise", "shrunken", "shuffle"]

_GRIDS = (2, 4)  # fewest and most cells a side
_RGB = "RGB"
Box = tuple[int, int, int, int]


NUM_PICTURES = 64
"""Pictures of the user that rows are made of, at most."""
_SIDE = 448  # pixels of the longer side, at most: bounds what a row takes in memory


def shrunken(picture: Image.Image) -> Image.Image:
    """A picture of the user as rows are made of it: RGB, and not large."""
    picture = picture.convert(_RGB)
    picture.thumbnail((_SIDE, _SIDE))
    return picture


def noise(generator: Generator, side: int) -> Image.Image:
    """Uniform noise of `side` x `side` pixels."""
    return Image.fromarray(torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8).numpy())


def blank(generator: Generator, side: int) -> Image.Image:
    """One random colour, `side` x `side` pixels."""
    red, green, blue = torch.randint(0, 256, (3,), generator=generator).tolist()
    return Image.new(_RGB, (side, side), (red, green, blue))


def shuffle(generator: Generator, pictures: Sequence[Image.Image]) -> Image.Image:
    """Cells of two pictures, permuted: of the 2 n^2 cells of both, n^2 fill the first one's frame."""
    first, second = _draw(generator, pictures), _draw(generator, pictures)
    boxes = _cells(generator, first.size)
    second = second.resize(first.size)
    chosen = torch.randperm(2 * len(boxes), generator=generator)[: len(boxes)].tolist()
    made = Image.new(_RGB, first.size)
    for box, cell in zip(boxes, chosen, strict=True):
        piece = (first, second)[cell // len(boxes)].crop(boxes[cell % len(boxes)])
        made.paste(piece.resize(_size(box)), box[:2])
    return made


def mosaic(generator: Generator, pictures: Sequence[Image.Image]) -> Image.Image:
    """Shrunken pictures in some cells of a grid, on the mean colour of the first, which also gives the frame."""
    first = _draw(generator, pictures)
    boxes = _cells(generator, first.size)
    made = first.resize((1, 1), Image.Resampling.BOX).resize(first.size)
    count = int(torch.randint(1, len(boxes) + 1, (), generator=generator))
    for number, cell in enumerate(torch.randperm(len(boxes), generator=generator)[:count].tolist()):
        piece = first if number == 0 else _draw(generator, pictures)
        made.paste(piece.resize(_size(boxes[cell])), boxes[cell][:2])
    return made


def _draw(generator: Generator, pictures: Sequence[Image.Image]) -> Image.Image:
    return pictures[int(torch.randint(len(pictures), (), generator=generator))].convert(_RGB)


def _cells(generator: Generator, size: tuple[int, int]) -> list[Box]:
    """The boxes of a grid over a picture; sizes differ by a pixel where the sides do not divide."""
    count = int(torch.randint(_GRIDS[0], _GRIDS[1] + 1, (), generator=generator))
    columns, rows = ([round(edge * k / n) for k in range(n + 1)] for edge, n in ((s, min(count, s)) for s in size))
    return [(left, top, right, bottom) for top, bottom in pairwise(rows) for left, right in pairwise(columns)]


def _size(box: Box) -> tuple[int, int]:
    return box[2] - box[0], box[3] - box[1]


PICTURES: dict[str, Callable[[Generator, int], Image.Image]] = {"noise": noise, "blank": blank}
MADE_OF_PICTURES: dict[str, Callable[[Generator, Sequence[Image.Image]], Image.Image]] = {
    "train": _draw,
    "shuffle": shuffle,
    "mosaic": mosaic,
}
