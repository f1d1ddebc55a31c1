"""Multiple choice: the letter a model chose, read from the ways models write it.

References are `[letter]` or `[letter, option text, ...]`. A prediction is right if it equals an option text
(normalised as in `exact_match`; not used for options that are themselves one letter), or if the letter read
from it is the reference's. A letter is read from, in this order:

1. the start: "B", "b", "(B)", "B.", "B: a dog", "B) a dog", a line with "B" alone (but not "A dog": that is an
   article);
2. after "answer", "option" or "choice": "The answer is B", "Option (c)", "answer: b." (a lower-case letter
   counts only in brackets or at the end of a sentence: "the answer is a dog" names no letter);
3. brackets anywhere: "I would say (C), the dog".

Markdown and quotation marks around it are ignored. Two letters in the same place ("A or B", "maybe (A) or (C)") are
no choice.
"""

import re
from collections.abc import Sequence

from dowser_pl.metrics.answers import AnswerMetric
from dowser_pl.metrics.exact_match import normalise

ONE_LETTER = re.compile(r"[A-Za-z]")
MARKS = re.compile(r"[*`$_\"“”]")
BRACKETED = r"[(\[{<]\s*([A-Za-z])\s*[)\]}>]"
AT_START = re.compile(rf"\s*(?:{BRACKETED}|([A-Za-z])\s*?(?:[.:)\],;]|\n|$))")
AFTER_WORD = re.compile(
    rf"\b(?i:answer|option|choice)\b(?:\s+(?i:is|would be|should be))?\s*[:=]?\s*"
    rf"(?:(?i:option|choice)\s+)?(?:{BRACKETED}|([A-Z])\b(?!')|([a-z])\s*(?:[.:),;]|$))"
)
ANYWHERE = re.compile(BRACKETED)
ANOTHER_LETTER = re.compile(r"\s*(?:,|/|&|\bor\b|\band\b)+\s*[(\[]?[A-Z][)\]]?(?=\W|$)")


def only_letter(pattern: re.Pattern[str], text: str) -> str | None:
    """The one letter a pattern finds in a text; None if it finds none, or several different ones."""
    letters = set()
    for match in pattern.finditer(text):
        if ANOTHER_LETTER.match(text, match.end()):
            return None
        letters |= {letter.upper() for letter in match.groups() if letter}
    return letters.pop() if len(letters) == 1 else None


def chosen_letter(prediction: str) -> str | None:
    """The upper-case letter a prediction chooses, None where it does not clearly choose one."""
    text = MARKS.sub("", prediction).strip()
    start = AT_START.match(text)
    if start:
        another = ANOTHER_LETTER.match(text, start.end()) or ANOTHER_LETTER.match(text, start.end() - 1)
        return None if another else next(letter for letter in start.groups() if letter).upper()
    return only_letter(AFTER_WORD, text) or only_letter(ANYWHERE, text)


def reference_letter(reference: str) -> str:
    """The letter of a reference such as "B", "b", "(B)" or "B.".

    Raises:
        ValueError: the reference is not one letter.
    """
    letter = normalise(reference)
    if not ONE_LETTER.fullmatch(letter):
        raise ValueError(
            f"multiple_choice: the first reference is {reference!r}, expected the letter of the right "
            'option, such as ["B"] or ["B", "a dog"]. For answers without letters use the metric exact_match.'
        )
    return letter.upper()


class MultipleChoice(AnswerMetric):
    """Share of predictions that choose the reference's letter or state its text."""

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if the right option is chosen, else 0; ValueError if the first reference is not a letter."""
        letter = reference_letter(references[0])
        texts = {text for text in map(normalise, references[1:]) if not ONE_LETTER.fullmatch(text)}
        return float(normalise(prediction) in texts or chosen_letter(prediction) == letter)
