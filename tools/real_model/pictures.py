"""Drawings of things in two styles, the concepts that they show, and pictures of them that differ in size and place."""

import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from real_model.fetching import unpack, unpack_all

SIDE = 56  # pixels: four patches of fourteen
_SMALLEST, _LARGEST = 40, 52
_NO_CONCEPT = frozenset("man men boy woman women girl male female person people oncoming face".split())


@dataclass(frozen=True)
class Emoji:
    """One concept, drawn once in every style.

    Attributes:
        concept: what it shows, in small letters; whether it is a woman or a man is left out.
        category: as Unicode has it, "Food & Drink".
        subcategory: as Unicode has it, "food-fruit".
        file: of the drawing.
    """

    concept: str
    category: str
    subcategory: str
    file: str


class Drawings:
    """The emoji that all styles have, one per concept.

    Args:
        tarballs: style -> package of its drawings, with `emoji.json` and `img/<style>/64/`.
    """

    def __init__(self, tarballs: Mapping[str, Path]) -> None:
        self.styles = tuple(tarballs)
        self._drawings = {style: unpack_all(path, f"img/{style}/64") for style, path in tarballs.items()}
        listed = json.loads(unpack(next(iter(tarballs.values())), "package/emoji.json"))
        found: dict[str, Emoji] = {}
        for each in sorted(listed, key=lambda each: str(each["unified"])):
            concept = _concept(each["name"])
            if concept and all(each["image"] in drawings for drawings in self._drawings.values()):
                emoji = Emoji(concept, each["category"], each["subcategory"], each["image"])
                found.setdefault(concept, emoji)
        self.emoji: Sequence[Emoji] = tuple(found.values())

    def picture(self, emoji: Emoji, style: str, chance: random.Random) -> Image.Image:
        """The drawing on white, RGB of 56 x 56 pixels, its size and place drawn by `chance`."""
        drawing = Image.open(io.BytesIO(self._drawings[style][emoji.file])).convert("RGBA")
        side = chance.randint(_SMALLEST, _LARGEST)
        drawing = drawing.resize((side, side), Image.Resampling.BICUBIC)
        ground = Image.new("RGBA", (SIDE, SIDE), "white")
        ground.alpha_composite(drawing, (chance.randint(0, SIDE - side), chance.randint(0, SIDE - side)))
        return ground.convert("RGB")


def _concept(name: str) -> str:
    """Empty where the name says nothing else than who is shown."""
    words = "".join(c if c.isalpha() or c == "-" else " " for c in name.lower()).split()
    return " ".join(word for word in words if word not in _NO_CONCEPT)
