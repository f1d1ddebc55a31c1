"""What the embedded world knows without pictures: sums, facts about invented creatures, repeating words."""

from functools import lru_cache

import numpy as np

from dowser_pl.data.world.words import COLOURS, CREATURES, FOODS, HOMES, NUMBERS, SYLLABLES

LEGS = NUMBERS[2:9]
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "home": HOMES,
    "food": FOODS,
    "colour": tuple(COLOURS),
    "legs": LEGS,
}
SUM_WORDINGS = ("what is {} ?", "{} is ?", "say {} .", "tell me the sum {} .")
FACT_WORDINGS = (
    "what is the {attribute} of the {creature} ?",
    "tell me the {attribute} of the {creature} .",
    "which {attribute} has the {creature} ?",
    "the {creature} has which {attribute} ?",
    "name the {creature} {attribute} .",
    "the {attribute} of the {creature} is ?",
)


@lru_cache(maxsize=1)
def facts() -> dict[tuple[str, str], str]:
    """(creature, attribute) -> value, 24 x 4 facts that are the same in every run."""
    rng = np.random.default_rng(2602)
    return {
        (creature, attribute): values[rng.integers(len(values))]
        for creature in CREATURES
        for attribute, values in ATTRIBUTES.items()
    }


def draw_sum(rng: np.random.Generator) -> tuple[str, str]:
    """A sum or difference with all numbers between zero and twenty, in words, and its result."""
    low, high = sorted(int(n) for n in rng.integers(0, 21, size=2))
    if rng.random() < 0.5:
        return f"{NUMBERS[high]} minus {NUMBERS[low]}", NUMBERS[high - low]
    return f"{NUMBERS[low]} plus {NUMBERS[high - low]}", NUMBERS[high]


def draw_fact(rng: np.random.Generator) -> tuple[str, str, str]:
    """A creature, an attribute and its value."""
    (creature, attribute), value = list(facts().items())[rng.integers(len(facts()))]
    return creature, attribute, value


def draw_words(rng: np.random.Generator) -> str:
    """Two to five syllables that mean nothing."""
    return " ".join(rng.choice(SYLLABLES, size=rng.integers(2, 6)))


def ask_sum(rng: np.random.Generator) -> tuple[str, str]:
    """A question about a sum and its answer."""
    terms, result = draw_sum(rng)
    return SUM_WORDINGS[rng.integers(len(SUM_WORDINGS))].format(terms), result


def ask_fact(rng: np.random.Generator) -> tuple[str, str]:
    """A question about a creature and its answer."""
    creature, attribute, value = draw_fact(rng)
    wording = FACT_WORDINGS[rng.integers(len(FACT_WORDINGS))]
    return wording.format(creature=creature, attribute=attribute), value


def ask_repeat(rng: np.random.Generator) -> tuple[str, str]:
    """An order to repeat some words and those words."""
    words = draw_words(rng)
    return f"{('repeat', 'say', 'please repeat')[rng.integers(3)]} {words} .", words
