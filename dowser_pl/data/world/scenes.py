"""Pictures of the embedded world: a scene says what is where, `load` paints it."""

from dataclasses import dataclass
from functools import cache
from math import cos, radians, sin

import numpy as np
from PIL import Image

from dowser_pl.data.world.glyphs import Bitmap, bitmap, shape
from dowser_pl.data.world.words import COLOURS, SHAPES

SIDE = 36  # pixels
CELL = 12  # pixels: a picture has 3 x 3 cells, and the vision tower sees one cell per patch
SIGN_HEIGHT, SIGN_WIDTH = 10, 7


@dataclass(frozen=True)
class Small:
    """A shape or sign inside one cell; `cell` counts from 0 in reading order, offsets are pixels in it."""

    glyph: str
    colour: str
    cell: int
    down: int
    right: int
    size: int = 0  # side of a shape in pixels; signs have one size


@dataclass(frozen=True)
class Large:
    """A glyph that fills the picture: `height` in pixels, `aspect` = width / height, `angle` in degrees."""

    glyph: str
    colour: str
    height: float
    aspect: float
    angle: float
    slant: float
    down: float
    right: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `grain` seeds background, colour jitter and noise, which mean nothing.

    It is a lazy image: datasets hold scenes, and the pixels are painted when a batch is made.
    """

    items: tuple[Small | Large, ...]
    grain: int

    def load(self) -> Image.Image:
        """Paint the scene: an RGB picture of 36 x 36 pixels, the same at every call."""
        return Image.fromarray(self.pixels())

    def pixels(self) -> np.ndarray:
        """The picture as uint8 (36, 36, 3)."""
        rng = np.random.default_rng(self.grain)
        canvas = np.empty((SIDE, SIDE, 3), dtype=np.float32)
        canvas[:] = rng.integers(0, 60, size=3)
        for item in self.items:
            colour = np.asarray(COLOURS[item.colour]) + rng.integers(-20, 21, size=3)
            top, left, ink = _small(item) if isinstance(item, Small) else (0, 0, _large(item))
            under = canvas[top : top + ink.shape[0], left : left + ink.shape[1]]
            under += ink[:, :, None] * (colour.astype(np.float32) - under)
        canvas += 6 * rng.standard_normal(canvas.shape, dtype=np.float32)
        return canvas.clip(0, 255).astype(np.uint8)


def _small(item: Small) -> tuple[int, int, Bitmap]:
    ink = shape(item.glyph, item.size) if item.glyph in SHAPES else _printed(item.glyph)
    return item.cell // 3 * CELL + item.down, item.cell % 3 * CELL + item.right, ink


@cache
def _printed(sign: str) -> Bitmap:
    image = Image.fromarray((bitmap(sign) * 255).astype(np.uint8))
    return np.asarray(
        image.resize((SIGN_WIDTH, SIGN_HEIGHT), Image.Resampling.BILINEAR), dtype=np.float32
    ) / np.float32(255)


def _large(item: Large) -> Bitmap:
    drawing = np.pad(bitmap(item.glyph), 1)
    rows, columns = (n - 2 for n in drawing.shape)
    across, along = (
        columns / (item.height * item.aspect),
        rows / item.height,
    )  # glyph pixels per picture pixel
    turn, slant = radians(item.angle), item.slant
    xx, xy = across * (cos(turn) + slant * sin(turn)), across * (sin(turn) - slant * cos(turn))
    yx, yy = -along * sin(turn), along * cos(turn)
    centre_x, centre_y = SIDE / 2 + item.right, SIDE / 2 + item.down
    x0 = drawing.shape[1] / 2 - xx * centre_x - xy * centre_y
    y0 = drawing.shape[0] / 2 - yx * centre_x - yy * centre_y
    image = Image.fromarray((drawing * 255).astype(np.uint8))
    warped = image.transform((SIDE, SIDE), Image.Transform.AFFINE, (xx, xy, x0, yx, yy, y0), Image.Resampling.BILINEAR)
    return np.asarray(warped, dtype=np.float32) / np.float32(255)


def place_small(rng: np.random.Generator, glyph: str, colour: str, cell: int) -> Small:
    """Put a shape or sign somewhere inside a cell."""
    if glyph in SHAPES:
        size = int(rng.integers(9, 12))
        down, right = rng.integers(0, CELL - size + 1, size=2)
        return Small(glyph, colour, cell, int(down), int(right), size)
    down, right = rng.integers(0, CELL - SIGN_HEIGHT + 1), rng.integers(1, CELL - SIGN_WIDTH)
    return Small(glyph, colour, cell, int(down), int(right))


def place_large(rng: np.random.Generator, glyph: str, colour: str) -> Large:
    """Draw a printed glyph over the whole picture, a little turned, slanted and shifted."""
    low = (22.0, 0.6, -12.0, -0.2, -3.0, -3.0)
    high = (30.0, 0.9, 12.0, 0.2, 3.0, 3.0)
    height, aspect, angle, slant, down, right = (round(float(v), 2) for v in rng.uniform(low, high))
    return Large(glyph, colour, height, aspect, angle, slant, down, right)


def shift_large(rng: np.random.Generator, glyph: str, colour: str) -> Large:
    """Draw a handwritten glyph over the whole picture as it was written, only scaled and shifted."""
    height, down, right = (round(float(v), 2) for v in rng.uniform((24.0, -3.0, -3.0), (30.0, 3.0, 3.0)))
    return Large(glyph, colour, height, aspect=0.9, angle=0.0, slant=0.0, down=down, right=right)
