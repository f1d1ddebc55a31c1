"""What can be drawn in the embedded world, as small bitmaps: shapes, signs of a 5 x 7 font, icons, digits.

A bitmap is a float32 array (height, width) in [0, 1], 1 where ink is. Nothing is read from disk except
scikit-learn's bundled handwritten digits (UCI optical recognition of handwritten digits, 8 x 8, 1797 images).
"""

from functools import cache, lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dowser_pl.data.world.words import SIGNS

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
    raise ValueError(f"unknown glyph: got {name!r}, expected a sign, icon:<index> or digit:<index>")
