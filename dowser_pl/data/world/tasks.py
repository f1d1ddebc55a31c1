"""The tasks of the embedded world, what its model can already do and what it is to learn, and how they are split.

A task draws a scene (or none) and asks about it. An example belongs to one split only: the split is a hash of
what is shown (items, their places and sizes, not the noise) or, without a picture, of the question's words.
So no layout and no wording of the test data was ever seen in training.

Downstream are old shapes, strokes and real handwriting under invented names, which are made of syllables that the
model can already say; what they name, it has never been told.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from zlib import crc32

import numpy as np

from dowser_pl.data.world.scenes import (
    NUM_ICONS,
    Large,
    Scene,
    Small,
    handwriting,
    place_large,
    place_small,
    shift_large,
)
from dowser_pl.data.world.text import (
    COLOURS,
    COLUMNS,
    CREATURES,
    LETTERS,
    NUMBERS,
    ROWS,
    SHAPES,
    SIGNS,
    SYLLABLES,
    ask_fact,
    ask_repeat,
    ask_sum,
)

Split = Literal["train", "validation", "test"]
Rng = np.random.Generator


@dataclass(frozen=True)
class Example:
    """One question with its only right answer; `scene` is None for a question without a picture."""

    question: str
    answer: str
    scene: Scene | None = None

    @property
    def split(self) -> Split:
        """The split this example belongs to, whoever draws it: 80 % train, 10 % validation, 10 % test."""
        shown = repr(self.scene.items) if self.scene else self.question
        bucket = crc32(shown.encode()) % 10
        return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def one_of(rng: Rng, words: tuple[str, ...]) -> str:
    """Draw one of the words uniformly."""
    return words[rng.integers(len(words))]


def _grain(rng: Rng) -> int:
    return int(rng.integers(2**31))


def one_shape(rng: Rng) -> Scene:
    """One shape of any colour in any cell."""
    item = place_small(rng, one_of(rng, SHAPES), one_of(rng, tuple(COLOURS)), int(rng.integers(9)))
    return Scene((item,), _grain(rng))


def some_shapes(rng: Rng, count: int | None = None) -> Scene:
    """`count` (default: one to seven) shapes in different cells, in reading order."""
    cells = sorted(rng.permutation(9)[: count or rng.integers(1, 8)])
    drawn = (place_small(rng, one_of(rng, SHAPES), one_of(rng, tuple(COLOURS)), int(cell)) for cell in cells)
    return Scene(tuple(drawn), _grain(rng))


def two_shapes(rng: Rng) -> Scene:
    """Two shapes in different cells, in reading order."""
    return some_shapes(rng, 2)


def written_text(rng: Rng) -> Scene:
    """Two or three signs of one colour side by side in one row."""
    length, row, colour = int(rng.integers(2, 4)), int(rng.integers(3)), one_of(rng, tuple(COLOURS))
    first = row * 3 + int(rng.integers(4 - length))
    drawn = (place_small(rng, one_of(rng, SIGNS), colour, first + index) for index in range(length))
    return Scene(tuple(drawn), _grain(rng))


def large_letter(rng: Rng) -> Scene:
    """One letter over the whole picture."""
    return Scene((place_large(rng, one_of(rng, LETTERS), one_of(rng, tuple(COLOURS))),), _grain(rng))


def where(item: Small | Large) -> tuple[int, int]:
    """Row and column of a small item."""
    assert isinstance(item, Small)
    return divmod(item.cell, 3)


def _describe(scene: Scene) -> str:
    first, second = scene.items
    relation = "beside" if where(first)[0] == where(second)[0] else "above"
    return f"a {first.colour} {first.glyph} {relation} a {second.colour} {second.glyph}"


@dataclass(frozen=True)
class Topic:
    """A task about pictures: what is drawn, how one may ask, and the answer."""

    draw: Callable[[Rng], Scene]
    wordings: tuple[str, ...]
    answer: Callable[[Scene], str]


TOPICS: dict[str, Topic] = {
    "colour": Topic(
        one_shape,
        ("what colour is the shape ?", "name the colour .", "which colour is this ?"),
        lambda scene: scene.items[0].colour,
    ),
    "shape": Topic(
        one_shape,
        ("which shape is this ?", "name the shape .", "what is in the picture ?"),
        lambda scene: scene.items[0].glyph,
    ),
    "place": Topic(
        one_shape,
        ("where is the shape ?", "name the place of the shape .", "where is it ?"),
        lambda scene: " ".join((ROWS[where(scene.items[0])[0]], COLUMNS[where(scene.items[0])[1]])),
    ),
    "count": Topic(
        some_shapes,
        ("how many shapes are there ?", "count the shapes .", "how many are here ?"),
        lambda scene: NUMBERS[len(scene.items)],
    ),
    "caption": Topic(
        two_shapes, ("describe the picture .", "describe the shapes .", "show me what is here ."), _describe
    ),
    "ocr": Topic(
        written_text,
        ("read the text .", "what is written here ?", "which text is this ?"),
        lambda scene: " ".join(item.glyph for item in scene.items),
    ),
    "letter": Topic(
        large_letter,
        ("which letter is this ?", "name the letter .", "read the letter ."),
        lambda scene: scene.items[0].glyph,
    ),
}
TEXT_TOPICS: dict[str, Callable[[Rng], tuple[str, str]]] = {
    "sum": ask_sum,
    "fact": ask_fact,
    "repeat": ask_repeat,
}
UPSTREAM = (*TOPICS, *TEXT_TOPICS)


def draw_example(task: str, rng: Rng) -> Example:
    """One example of an upstream task, of whatever split."""
    if task in TEXT_TOPICS:
        return Example(*TEXT_TOPICS[task](rng))
    topic = TOPICS[task]
    scene = topic.draw(rng)
    return Example(one_of(rng, topic.wordings), topic.answer(scene), scene)


def examples(task: str, split: Split, seed: int) -> Iterator[Example]:
    """An endless stream of examples of one upstream task and one split, the same for the same seed."""
    rng = np.random.default_rng([seed, UPSTREAM.index(task)])
    while True:
        example = draw_example(task, rng)
        if example.split == split:
            yield example


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
