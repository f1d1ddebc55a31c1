"""The downstream tasks of the embedded world: old shapes, strokes and real handwriting under invented names.

The invented words are made of syllables the model can already say; what they name, it has never been told.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from dowser_pl.data.world.glyphs import NUM_ICONS, handwriting
from dowser_pl.data.world.scenes import Large, Scene, Small, place_large, shift_large
from dowser_pl.data.world.tasks import Example, Rng, Split, one_of, two_shapes, where
from dowser_pl.data.world.words import COLOURS, CREATURES, SHAPES, SYLLABLES

Downstream = Literal["digits", "zucap", "icon"]
DIGITS_QUESTION = "what is this called ?"
ICON_QUESTION = "what is the sign called ?"
ZUCAP_QUESTION = "describe the picture in the old language ."
NUM_DIGITS_TRAIN, NUM_DIGITS_VALIDATION = 1200, 200  # of 1797; the validation part is the end of the 1200


@lru_cache(maxsize=1)
def invented_names() -> tuple[str, ...]:
    """Two-syllable words that name nothing upstream, always the same ones in the same order."""
    pairs = [f"{first} {second}" for first in SYLLABLES for second in SYLLABLES if first != second]
    names = [pair for pair in pairs if pair not in CREATURES]
    return tuple(names[i] for i in np.random.default_rng(2604).permutation(len(names)))


def _colour(rng: Rng) -> str:
    return one_of(rng, tuple(COLOURS))


def num_distinct(task: Downstream, tuning: bool) -> int:
    """Training rows of a task unless more are asked for: every handwritten digit once, else 2000."""
    return len(digits_split("train", tuning)) if task == "digits" else 2000


def digits_split(split: Split, tuning: bool) -> np.ndarray:
    """Indices of the handwritten digits of a split; the bundled order was shuffled once by a fixed seed.

    Args:
        split: "train", "validation" or "test".
        tuning: True while settings are chosen: the validation part is then taken out of the training part.
    """
    order = np.random.default_rng(2605).permutation(len(handwriting()[1]))
    first_validation = NUM_DIGITS_TRAIN - NUM_DIGITS_VALIDATION
    if split == "train":
        return order[: first_validation if tuning else NUM_DIGITS_TRAIN]
    return order[first_validation:NUM_DIGITS_TRAIN] if split == "validation" else order[NUM_DIGITS_TRAIN:]


def _digits(split: Split, tuning: bool, rng: Rng) -> Iterator[Example]:
    """Every handwritten digit of the split once, in random order, then again with new colours and places."""
    indices = digits_split(split, tuning)
    labels = handwriting()[1]
    while True:
        for index in rng.permutation(indices):
            scene = Scene((shift_large(rng, f"digit:{index}", _colour(rng)),), int(rng.integers(2**31)))
            yield Example(DIGITS_QUESTION, invented_names()[labels[index]], scene)


def _icon(rng: Rng) -> Example:
    index = int(rng.integers(NUM_ICONS))
    scene = Scene((place_large(rng, f"icon:{index}", _colour(rng)),), int(rng.integers(2**31)))
    return Example(ICON_QUESTION, invented_names()[10 + index], scene)


def _zucap(rng: Rng) -> Example:
    scene = two_shapes(rng)
    return Example(ZUCAP_QUESTION, _old_language(scene.items), scene)


def _old_language(items: Sequence[Small | Large]) -> str:
    """Eight syllables, relation last: shape (2) colour (1) shape (2) colour (1) relation (2)."""
    words = invented_names()[26:]
    described = [f"{words[SHAPES.index(i.glyph)]} {SYLLABLES[list(COLOURS).index(i.colour)]}" for i in items]
    same_row = where(items[0])[0] == where(items[1])[0]
    return " ".join([*described, words[len(SHAPES) + same_row]])


def downstream_examples(task: Downstream, split: Split, tuning: bool, seed: int) -> Iterator[Example]:
    """An endless stream of examples of one downstream task and one split, the same for the same seed.

    Args:
        task: Which task.
        split: "train", "validation" or "test".
        tuning: True while settings are chosen on validation data; matters for digits, see `digits_split`.
        seed: Draws colours, places and order.
    """
    rng = np.random.default_rng([seed, 100, ("digits", "zucap", "icon").index(task)])
    if task == "digits":
        yield from _digits(split, tuning, rng)
    draw = _icon if task == "icon" else _zucap
    while True:
        example = draw(rng)
        if example.split == split:
            yield example
