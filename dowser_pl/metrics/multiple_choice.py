r"""Multiple choice: the letter a model chose, read from the ways models write it.

References are `[letter]` or `[letter, option text, ...]`. A prediction is right if it equals an option text
(normalised as in `exact_match`; not used for options that are themselves one letter), with or without the letter in
front, or if the letter read from it is the reference's. Full-width letters and marks count as their plain forms;
Markdown, quotation marks, and what a model thought before it answered (`<think>`) do not count, for the text neither.
A letter is read from the first of these that names one:

1. what stands in the last `<answer>...</answer>` (or `<choice>`, `<option>`) or `\boxed{...}`, and from nothing else
   where there is one;
2. the start: "B", "b", "(B)", "B.", "B: a dog", "B) a dog", "B - a dog", a line with "B" alone (but not "A dog": that
   is an article);
3. after "answer": "The answer is B", "答案是B", "正解はB" (a lower-case letter counts only in brackets or at the end of
   a sentence: "the answer is a dog" names no letter);
4. what is called right: "B is correct", "B是正确的";
5. a statement: "It's B", "I choose B", "Thus, B"; a last line, or what follows a colon, with "B" alone;
6. after "option", "choice", "letter", "选": "Option (c)", "选B";
7. brackets anywhere: "I would say (C), the dog".

Two letters in the same place ("A or B", "maybe (A) or (C)") are no choice, and what is denied ("B is wrong") is none.
"""

import re
import unicodedata
from collections.abc import Sequence

from dowser_pl.errors import DowserError
from dowser_pl.metrics.answers import AnswerMetric
from dowser_pl.metrics.exact_match import normalise

ONE_LETTER = re.compile(r"[A-Za-z]")
THOUGHTS = re.compile(r".*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
TAG = r"(?:final[_ ]?)?(?:answer|choice|option)"
TAGGED = re.compile(
    rf"<{TAG}>(.*?)(?:</{TAG}>|$)|<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|$)"
    r"|\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}",
    re.DOTALL | re.I,
)
MARKS = re.compile(r"[*`$_\"“”「」『』]|\\(?:text|mathrm|mathbf|textbf)\b")

BRACKETED = r"[(\[{<【\u3014]\s*([A-Za-z])\s*[)\]}>】\u3015]"
LATIN = r"[A-Za-z\u00c0-\u024f0-9]"
REASON = r"(?:because|since|as|is|for|given|due|based|in|from)\b"
# words: "A dog", "I think", "X光", "B超"; letters: "A because", "A or B", "B是", "B选项"
BEHIND = (
    rf"(?!{LATIN}|'|\u2019|-{LATIN})(?!(?<=[AI])\s+(?!{REASON}|or\b|and\b)[a-z])"
    r"(?=[\s\W]|$|[是为為项項选選对對正错錯因吧不]|です|だ|で|が|は|の|を|입니다|이|가|번|예요|라)"
)
CAPITAL = rf"(?<!{LATIN})([A-Z]){BEHIND}"
SMALL = r"([a-z])\s*(?:[.:),;]|$)"
QUOTED = re.compile(r"(?<!\w)['\u2018\u2019]([A-Za-z])['\u2018\u2019](?!\w)")
CHOSEN = rf"\s*(?:[:=,、]|\s[-\u2013\u2014]\s)?\s*(?:(?i:option|choice|letter)\s+)?(?:{BRACKETED}|{CAPITAL}|{SMALL})"
IS = (
    r"(?:'s|\s+(?i:is|was|would be|should be|must be|will be|seems to be|appears to be|es|est|ist|\u00e9|\u00e8|adalah)"
    r"(?:\s+(?i:most likely|probably|likely|clearly|therefore|thus|definitely|indeed))?)?"
)
AT_START = re.compile(
    rf"\s*(?:{BRACKETED}|[(\[{{<]?(?![Ii]\s*,)([A-Za-z])\s*?(?:[.:)\]}}>,;/=!?。、]|\n|$|\s+[-\u2013\u2014]\s|[\u2013\u2014])"
    r"|([B-HJ-Z])\s+(?:a|an|the)\s|([A-HJ-Z])\s+(?:because|since|as)\b"
    r"|([A-Z])(?:\t|\s+(?=[\u3040-\u9fff])|\s*(?:是|为|為|选?项|選?項|です|だ|でしょう|が|を|입니다|번)))"
)

ANSWER_ABROAD = "antwort|respuesta|r\u00e9ponse|resposta|risposta|jawaban"
EAST_ANSWER = r"(?:答案|正解|答え|解答|回答|정답|답|ตอบ)(?:应该|應該|应|應)?(?:是|为|為|选|選|は|が|은|는|คือ)?"
EAST_CHOICE = r"(?<![不别別非])(?:选择|選擇|选项|選項|選択肢|选|選|選ぶ|択|ข้อ|是)(?:的是|的|是|为|為|は)?"
ANSWER = re.compile(rf"(?:\b(?i:answer|ans\.?|response|{ANSWER_ABROAD})(?!\w){IS}|{EAST_ANSWER}){CHOSEN}")
PATTERNS = [
    ANSWER,
    re.compile(
        rf"(?:{CAPITAL}|{BRACKETED})\s*(?:(?i:is|would be|seems|looks|appears)\s+(?:to be\s+)?(?:the\s+|my\s+)?"
        r"(?:most\s+|best\s+)?(?i:correct|right|best|true|answer|likely|accurate)|(?:best\s+)?(?i:fits|matches)\b|[项項]?(?:是|为|為|が|は|이|가)?\s*(?:正|对|對|最))"
    ),
    re.compile(
        r"(?<!not )(?<!n't )(?<!never )"
        r"\b(?i:it'?s|(?:it|this|that) is|(?:it |this |that )?(?:must|should|would) be"
        r"|choose|pick|select|say|go with|think|believe|guess|thus|therefore|hence|so"
        rf"|yes|probably|likely|definitely|certainly|clearly)\b\s*[,:]?\s*{CAPITAL}(?=\s*(?:$|[\W]|{REASON}))"
    ),
    re.compile(rf"(?:[:\n]|^)\s*{CAPITAL}[.)。]?\s*$"),
    re.compile(rf"(?:\b(?i:option|choice|letter|alternative)\b{IS}|{EAST_CHOICE}){CHOSEN}"),
    re.compile(BRACKETED),
]
AND = r"(?:,|、|/|&|\bor\b|\band\b|[或和及与與跟とや])"
ANOTHER_LETTER = re.compile(rf"\s*{AND}+\s*(?i:(?:option|choice)\s+)?[(\[]?([A-Z])[)\]]?(?=\W|$|{AND})")
DENIED = re.compile(
    r"\s*(?:is\s+(?:not\b|wrong|incorrect|false)|isn't|is\s?n\u2019t|(?:can\s?not|can't|does\s?n't|doesn't)\b|[也都]?是?(?:不|错|錯))"
)


def named_letters(pattern: re.Pattern[str], text: str) -> set[str]:
    """The letters a pattern finds in a text, with those that are offered beside them."""
    letters = set()
    for match in pattern.finditer(text):
        if not DENIED.match(text, match.end()):
            letters |= {letter.upper() for letter in match.groups() if letter}
            letters |= {another[1] for another in [ANOTHER_LETTER.match(text, match.end())] if another}
    return letters


def answered(prediction: str) -> str:
    """What a prediction gives as its answer: no thoughts before it, and of a text with tags what the last has."""
    text = THOUGHTS.sub("", unicodedata.normalize("NFKC", prediction))
    tagged = [content for match in TAGGED.finditer(text) for content in match.groups() if content is not None]
    return answered(tagged[-1]) if tagged else MARKS.sub("", text)


def chosen_letter(prediction: str) -> str | None:
    """The upper-case letter a prediction chooses, None where it does not clearly choose one."""
    text = QUOTED.sub(r"\1", answered(prediction)).strip()
    start = AT_START.match(text)
    if start and not DENIED.match(text, start.end()):
        another = ANOTHER_LETTER.match(text, start.end()) or ANOTHER_LETTER.match(text, start.end() - 1)
        return None if another else next(letter for letter in start.groups() if letter).upper()
    if len(named_letters(ANSWER, text)) > 1:
        return None
    found = (named_letters(pattern, text) for pattern in PATTERNS)
    return next((letters.pop() for letters in found if len(letters) == 1), None)


def reference_letter(reference: str) -> str:
    """The letter of a reference such as "B", "b", "(B)" or "B.".

    Raises:
        DowserError: the reference is not one letter.
    """
    letter = normalise(unicodedata.normalize("NFKC", reference))
    if not ONE_LETTER.fullmatch(letter):
        raise DowserError(
            f"multiple_choice: the first reference is {reference!r}, expected the letter of the right "
            'option, such as ["B"] or ["B", "a dog"]. For answers without letters use the metric exact_match.'
        )
    return letter.upper()


class MultipleChoice(AnswerMetric):
    """Share of predictions that choose the reference's letter or state its text."""

    def says_something(self, prediction: str) -> bool:
        """Whether a prediction chooses a letter."""
        return chosen_letter(prediction) is not None

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if the right option is chosen, else 0; ValueError if the first reference is not a letter."""
        letter = reference_letter(references[0])
        texts = {text for text in map(normalise, references[1:]) if not ONE_LETTER.fullmatch(text)}
        stated = {*texts, *(f"{letter.lower()} {text}" for text in texts)}
        said = {normalise(prediction), normalise(answered(prediction))}
        return float(bool(said & stated) or chosen_letter(prediction) == letter)
