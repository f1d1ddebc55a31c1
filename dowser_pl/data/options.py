"""The options of a multiple choice question, in the layouts of published benchmarks, and which of them is right."""

from __future__ import annotations

import ast
import re
import unicodedata
from contextlib import suppress
from decimal import Decimal
from math import isfinite
from numbers import Integral, Real
from string import ascii_uppercase
from typing import Any

from dowser_pl.data.row_keys import absent
from dowser_pl.errors import DowserError

_LISTS = ("options", "choices")
_COLUMN = re.compile(r"([A-Z])|(?i:(?:option|choice)[_ ]?([a-z]))", re.ASCII)


def as_text(where: str, value: Any) -> str:
    """A text as it stands, or a number as one writes it: 3.0 is "3", 1e-07 is "0.0000001".

    Raises:
        DowserError: it is neither; null, NaN, true and lists would become words that nobody has written.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, Real) or isinstance(value, bool) or not isfinite(value):
        raise DowserError(f"{where} must be text or a number, got {value!r:.60}. Write it as the text that is right.")
    text = f"{Decimal(repr(float(value))):f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def option_keys(row: dict[str, Any]) -> list[str]:
    """The keys of a row that hold options: `options` or `choices`, else columns A, B, ... or option_a, choice_a, ..."""
    for key in _LISTS:
        if not absent(row.get(key)):
            return [key]
    columns = [key for key in row if _letter(key)]
    if not {"A", "B"} <= set(map(_letter, columns)):  # a single letter may be the name of anything
        columns = [key for key in columns if len(key) > 1]
    return sorted((key for key in columns if not absent(row[key])), key=_letter)


def read_options(name: str, row: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Letter to option, as the row has it, empty for a question without; and whether the row itself labels them.

    Raises:
        DowserError: options of another form, fewer than two, more than the alphabet has, or an empty one in between.
    """
    keys = option_keys(row)
    if not keys:
        return {}, False
    if keys[0] in _LISTS:
        found, has_labels = _labelled(name, row[keys[0]])
    else:
        found, has_labels = {_letter(key): row[key] for key in keys}, True
        if len(found) < len(keys):
            raise DowserError(f"{name}: expected one column per option, got {keys}.")
    if len(found) < 2:
        raise DowserError(f"{name}: expected at least two options, got {found}.")
    return found, has_labels


def right_option(name: str, answers: list[Any], options: dict[str, Any], has_labels: bool) -> list[str]:
    """[letter, text] of the right option, given as letter, text or 0-based index.

    Args:
        name: of the row.
        answers: what the row says is right; of several, those that are options must be the same option.
        options: letter to option.
        has_labels: the file itself labels its options, so an answer that is a label means that option; otherwise one
            that could be the letter of one option and is the text of another is refused.

    Raises:
        DowserError: the answer is none of the options, or one cannot tell which.
    """
    found = {letter for answer in answers for letter in _letters_of(name, answer, options, has_labels)}
    if not found:
        raise DowserError(
            f"{name}: the answer {answers} is none of the options {options}: neither letter, text nor index."
        )
    if len(found) > 1:
        raise DowserError(
            f"{name}: the answer {answers} means several of the options {options}: {sorted(found)}; expected one. Give "
            "the options as an object with a letter for each, and the answer as its letter."
        )
    letter = found.pop()
    return [letter, as_text(f"{name}: option {letter}", options[letter])]


def _letters_of(name: str, answer: Any, options: dict[str, Any], has_labels: bool) -> set[str]:
    given = as_text(f"{name}: the answer", answer).strip()
    is_number = not isinstance(answer, str)
    if is_number and not any(isinstance(option, Real) for option in options.values()):
        by_index = _at(options, given)
        if by_index:
            return by_index
    letter = {unicodedata.normalize("NFKC", given).strip("(). ").upper()} & options.keys()
    texts = {key: as_text(f"{name}: option {key}", option).strip().casefold() for key, option in options.items()}
    by_text = {key for key, text in texts.items() if text == given.casefold()}
    if has_labels:
        return letter or by_text or _at(options, given)
    return letter | by_text or _at(options, given)


def _at(options: dict[str, Any], index: str) -> set[str]:
    return {list(options)[int(index)]} if index.isdecimal() and int(index) < len(options) else set()


def _labelled(name: str, given: Any) -> tuple[dict[str, Any], bool]:
    """What a list, an object, or the text of a Python list (as tables have it) says; see `read_options`."""
    if isinstance(given, str) and given.lstrip().startswith("["):
        with suppress(ValueError, SyntaxError):  # said below
            given = ast.literal_eval(given.strip())
    if isinstance(given, dict) and given.keys() == {"text", "label"} and len(given["text"]) == len(given["label"]):
        given = dict(zip(given["label"], given["text"], strict=True))  # as ARC has it
    if isinstance(given, dict):
        return {letter.strip("(). ").upper(): option for letter, option in given.items() if not absent(option)}, True
    if isinstance(given, list):
        while given and absent(given[-1]):  # tables pad to the longest
            given = given[:-1]
    if not isinstance(given, list) or len(given) > len(ascii_uppercase) or any(map(absent, given)):
        raise DowserError(
            f"{name}: options are a list of at most {len(ascii_uppercase)}, none of them empty, or an object like "
            f'{{"A": ...}}, got {str(given)[:60]!r}.'
        )
    return dict(zip(ascii_uppercase, given, strict=False)), False


def _letter(key: str) -> str:
    """The letter that a column stands for: "B" of B, option_b, Option B and choice_b; nothing for other columns."""
    found = None if key in _LISTS else _COLUMN.fullmatch(key)
    return (found[1] or found[2]).upper() if found else ""
