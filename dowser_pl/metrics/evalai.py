"""The answer normalisation of the VQA challenge on EvalAI, written from its published rules.

VQA: Visual Question Answering. Agrawal, Lu, Antol, Mitchell, Zitnick, Batra, Parikh, 2015. arXiv:1505.00468,
rules at https://visualqa.org/evaluation.html. The EvalAI form (used for TextVQA, arXiv:1904.08920, and by
LLaVA) lower-cases first and adds rules 2 and 3. In this order:

1. lower case;
2. `,` and `?` vanish;
3. a possessive is set apart: "dog's" becomes "dog 's";
4. every other mark of `MARKS` vanishes if the text has it next to a space, and becomes a space if it only
   joins words ("red/blue" becomes "red blue");
5. a full stop vanishes unless a digit follows ("3.5" and ".5" stay);
6. word by word: number words up to ten (and "none") become digits, articles vanish, and a contraction that
   has lost one apostrophe gets it back ("dont" becomes "don't").
"""

import re

MARKS = ';/[]"{}()=+\\_-><@`!'
FULL_STOP = re.compile(r"\.(?!\d)")
ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(NUMBERS)}

PEOPLE = ("he", "somebody", "someone", "who")
VERBS = ("ai", "are", "ca", "did", "do", "does", "had", "has", "have", "is", "was", "were", "wo")
MODALS = ("could", "might", "must", "need", "ought", "sha", "should", "would")
CONTRACTED = {  # ending: what stands before it; left out where the misspelling is a word ("shed", "were")
    "n't": (*VERBS, *MODALS),
    "n't've": ("could", "had", "might", "should", "would"),
    "'ve": ("could", "might", "must", "not", "should", "they", "we", "what", "where", "who", "would", "you"),
    "'d": (*PEOPLE, "how", "it", "something", "there", "they", "where", "you"),
    "'d've": (*PEOPLE, "it", "she", "something", "there", "they", "we", "y'all", "you"),
    "'s": (*PEOPLE, "how", "that", "there", "what", "when", "where", "why"),
    "'ll": ("how", "it", "somebody", "someone", "something", "they", "what", "who", "why", "y'all", "you"),
    "'re": ("there", "they", "what", "why", "you"),
    "": ("ma'am", "o'clock", "'ow's'at", "'twas", "y'all"),
}


def lacking_one_apostrophe(word: str) -> list[str]:
    """The misspellings of a contraction that the rules repair: each of its apostrophes left out once."""
    return [word[:i] + word[i + 1 :] for i, character in enumerate(word) if character == "'"]


REPAIRED = {
    broken: start + ending
    for ending, starts in CONTRACTED.items()
    for start in starts
    for broken in lacking_one_apostrophe(start + ending)
}


def without_marks(text: str) -> str:
    """Rules 4 and 5; whether a mark stands next to a space is decided before any mark is touched."""
    kept = text
    for mark in MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if beside_space else " ")
    return FULL_STOP.sub("", kept)


def normalise(text: str) -> str:
    """The text as the VQA evaluation compares it; may be empty."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = re.sub(r"[\n\t]", " ", text).strip()
    words = (DIGITS.get(word, word) for word in without_marks(text).split())
    return " ".join(REPAIRED.get(word, word) for word in words if word not in ARTICLES)
