"""What the parser of the command line says against an argument, in one line and without its own words for types."""

import re
from argparse import ArgumentError
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from dowser_pl.cli.options import ROOMS
from dowser_pl.cli.spelling import Word, check_spelling, names_class, words_of
from dowser_pl.errors import DowserError, message_of
from dowser_pl.files.class_path import class_named

__all__ = ["in_words"]

_LONGEST = 400  # characters
_WORDS = (
    (r"Expected a dot import path string: (\S+)", r"there is no class \1 that is known; give its module too"),
    (r"<class '(?:builtins\.)?([^']+)'>", r"\1"),
    (r"typing\.Literal\[([^]]*)\]", r"one of \1"),
    (r"Expected an? (.*?)\. Got value: (.*)", r"got \2, expected \1"),
    (r"the following arguments are required: (?:\w+\.)?(\S+)", r"--\1 is required"),
    (r"unrecognized arguments: (.*)", r"not understood: \1"),
    (r"NestedArg\(key='([^']+)', val='?([^)']*)'?\)", r".\1 \2"),
    (r"Namespace\(.*", r"..."),
)


def in_words(error: ArgumentError, verb: str, arguments: Sequence[str]) -> str:
    """What is wrong, with the option and where it stands.

    Args:
        error: the parser's.
        verb: a training verb.
        arguments: what follows it.
    """
    try:
        check_spelling(verb, arguments)
    except DowserError as ours:
        return str(ours)
    ours_below = message_of(error)
    if ours_below is not None:
        return ours_below
    try:
        _check_last_class(list(words_of(arguments)))
    except DowserError as ours:
        return str(ours)
    path = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', str(error))))
    text = " ".join(_innermost(error).split())
    for pattern, words in _WORDS:
        text = re.sub(pattern, words, text)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    if not path:
        return f"{text}. Help: python -m dowser_pl {verb} --help"
    written = [(f"{word.name.replace('.init_args', '')}.", word.where) for word in words_of(arguments)]
    where = next((place for name, place in reversed(written) if name.startswith(f"{path}.")), "")
    return f"{where}{'' if where else '--'}{path}: {text}"


def _check_last_class(words: Sequence[Word]) -> None:
    """Refuse a class path that leads to none of the kind an option takes, of those that count in the end."""
    for owner, word in {owner: word for word in words if (owner := names_class(word))}.items():
        if "." in word.value and not Path(word.value).is_file():
            module, base = ROOMS[owner]
            kind = getattr(import_module(module), base, object)
            class_named(word.value, kind, f"{word.where}{word.shown}", {})


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return str(error)
