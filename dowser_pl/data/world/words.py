"""The language of the embedded world: every word is one token."""

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
    """All tokens in the order of their ids; the special ones come first."""
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
