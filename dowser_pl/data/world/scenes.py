"""Pictures of the embedded world: a scene says what is where, `load` paints it with small bitmaps.

A bitmap (shape, sign of a 5 x 7 font, icon, digit) is a float32 array (height, width) in [0, 1], 1 where ink is.
Nothing is read from disk except scikit-learn's bundled handwritten digits (UCI optical recognition of handwritten
digits, 8 x 8, 1797 images).
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from math import cos, radians, sin
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dowser_pl.data.world.text import COLOURS, SHAPES, SIGNS
from dowser_pl.errors import DowserError

Bitmap = np.ndarray[Any, np.dtype[np.float32]]

NUM_ICONS = 16
_FONT = {  # five columns from left to right; bit 0 is the top pixel
    **{"A": "7E1111117E", "B": "7F49494936", "C": "3E41414122", "D": "7F4141221C", "E": "7F49494941"},
    **{"F": "7F09090901", "G": "3E4149497A", "H": "7F0808087F", "I": "00417F4100", "J": "2040413F01"},
    **{"K": "7F08142241", "L": "7F40404040", "M": "7F020C027F", "N": "7F0408107F", "O": "3E4141413E"},
    **{"P": "7F09090906", "Q": "3E4151215E", "R": "7F09192946", "S": "4649494931", "T": "01017F0101"},
    **{"U": "3F4040403F", "V": "1F2040201F", "W": "3F4038403F", "X": "6314081463", "Y": "0708700807"},
    **{"Z": "6151494543", "0": "3E5149453E", "1": "00427F4000", "2": "4261514946", "3": "2141454B31"},
    **{"4": "1814127F10", "5": "2745454539", "6": "3C4A494930", "7": "0171090503", "8": "3649494936"},
    **{"9": "064949291E"},
}


@cache
def shape(name: str, size: int) -> Bitmap:
    """The shape `name` drawn (size, size) pixels large."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(axis, axis)
    radius = np.hypot(x, y)
    ink = {
        "square": np.ones_like(x, dtype=bool),
        "disc": radius <= 1,
        "ring": (radius <= 1) & (radius >= 0.6),
        "cross": (abs(x) < 0.3) | (abs(y) < 0.3),
        "triangle": abs(x) <= (y + 1) / 2,
        "diamond": abs(x) + abs(y) <= 1,
        "frame": np.maximum(abs(x), abs(y)) >= 0.6,
        "bars": np.arange(size)[None, :] // 2 % 2 == np.zeros((size, 1)),
    }[name]
    return ink.astype(np.float32)


@cache
def sign(name: str) -> Bitmap:
    """A letter or a printed digit: (7, 5)."""
    columns = np.frombuffer(bytes.fromhex(_FONT[name]), dtype=np.uint8)
    return ((columns[None, :] >> np.arange(7)[:, None]) & 1).astype(np.float32)


@cache
def icon(index: int) -> Bitmap:
    """One of `NUM_ICONS` stroke drawings, (10, 10): four joined strokes, always the same for an index."""
    corners = np.random.default_rng([2602, index]).permutation(16)[:5]
    points = [(int(c % 4) * 3, int(c // 4) * 3) for c in corners]
    image = Image.new("L", (10, 10))
    ImageDraw.Draw(image).line(points, fill=255, width=1)
    return np.asarray(image, dtype=np.float32) / np.float32(255)


@lru_cache(maxsize=1)
def handwriting() -> tuple[Bitmap, list[int]]:
    """The handwritten digits: bitmaps (1797, 8, 8) and what each shows, 0 to 9."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  (half a second that only the digits task pays)

    digits = load_digits()
    return (digits.images / 16).astype(np.float32), [int(label) for label in digits.target]


def bitmap(name: str) -> Bitmap:
    """What fills a whole picture: a sign by its word, `icon:<index>` or `digit:<index>`."""
    kind, _, index = name.partition(":")
    if kind == "icon":
        return icon(int(index))
    if kind == "digit":
        return handwriting()[0][int(index)]
    if name in SIGNS:
        return sign(name)
    raise DowserError(f"unknown glyph: got {name!r}, expected a sign, icon:<index> or digit:<index>")


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
