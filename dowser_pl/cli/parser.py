"""The parser of the offline verbs: argparse, whose errors are one line that says what was probably meant."""

import argparse
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, NoReturn

from dowser_pl.cli.ending import refuse

__all__ = ["LineParser"]


class LineParser(argparse.ArgumentParser):
    """Without abbreviations of options, and without its usage before an error."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False} | settings)

    def error(self, message: str) -> NoReturn:
        """End with one line on stderr and status 2."""
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if unknown:
            said = f"there is no option {unknown[1]}" if unknown[1].startswith("-") else f"not understood: {unknown[1]}"
            message = said + _meant(unknown[1].partition("=")[0], _options(self))
        elif choice:
            names = re.findall(r"[\w-]+", choice[2])
            message = f"got {choice[1]!r}, expected one of: {', '.join(names)}{_meant(choice[1], names)}"
        sys.exit(refuse(f"{message.rstrip('.?')}{'?' if message.endswith('?') else '.'} Help: {self.prog} --help"))


def _meant(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return sorted(set(_walk(parser)))


def _walk(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _walk(inner)
