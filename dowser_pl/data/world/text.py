"""The language of the embedded world, every word one token, and what its model knows without pictures.

That is sums, facts about invented creatures, and repeating words.
"""

from functools import lru_cache

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {  # word -> sRGB
    "red": (225, 45, 40),
    "green": (40, 185, 60),
    "blue": (50, 85, 235),
    "yellow": (235, 215, 50),
    "cyan": (50, 210, 220),
    "purple": (165, 60, 205),
    "white": (240, 240, 240),
    "orange": (245, 135, 30),
}
SHAPES = ("square", "disc", "ring", "cross", "triangle", "diamond", "frame", "bars")
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
SIGNS = (*LETTERS, *"0123456789")
SYLLABLES = tuple(consonant + vowel for consonant in "bklmnrtz" for vowel in "aiou")

CREATURES = (  # two syllables each
    *("zu ra", "mi ko", "ba lu", "ti no", "ka ri", "lo mu", "nu za", "bo ki"),
    *("ra ti", "mo la", "zi bu", "ku na", "li ro", "ta mi", "no zu", "bi ka"),
    *("ru mo", "la ni", "to ba", "ma zo", "ki lu", "na ru", "bu ta", "zo li"),
)
HOMES = ("forest", "river", "hill", "cave", "field", "lake", "desert", "swamp")
FOODS = ("grass", "fish", "nuts", "fruit", "honey", "bread", "seeds", "milk")

PAD, BOS, EOS, UNKNOWN, IMAGE = SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
GRAMMAR = (
    *("user", "assistant", ":", "?", ".", "what", "which", "where", "how", "is", "are", "the", "a", "of"),
    *("and", "in", "it", "this", "there", "here", "tell", "me", "name", "say", "show", "please", "describe"),
    *("read", "repeat", "count", "many", "shape", "shapes", "colour", "picture", "text", "place", "letter"),
    *("sign", "written", "called", "old", "language", "above", "beside", "plus", "minus", "sum", "home"),
    *("food", "legs", "has"),
)


def vocabulary() -> tuple[str, ...]:
    """Every token of the world in the order of their ids; the special ones come first."""
    return (
        *SPECIAL,
        *GRAMMAR,
        *COLOURS,
        *SHAPES,
        *NUMBERS,
        *ROWS,
        *COLUMNS,
        *SIGNS,
        *SYLLABLES,
        *HOMES,
        *FOODS,
    )


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
