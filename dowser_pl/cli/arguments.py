"""Numbers of a command line and a configuration: which arguments are numbers, and which no option can take."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["check_numbers", "joined_numbers"]

_NEGATIVE = re.compile(r"-((\d+\.?\d*|\.\d+)(e[-+]?\d+)?|\.?inf(inity)?|\.?nan)", re.IGNORECASE)
_UNBOUNDED = ("trainer.callbacks", "trainer.logger", "trainer.strategy", "trainer.plugins", "trainer.profiler")


def joined_numbers(args: Sequence[str]) -> list[str]:
    """``--lr -1e-3`` as ``--lr=-1e-3``: parsers take a negative number with an exponent for the name of an option.

    Args:
        args: the command line without the program.
    """
    joined: list[str] = []
    for argument in args:
        names = bool(joined) and re.fullmatch(r"--[^=]+", joined[-1]) is not None
        if names and _NEGATIVE.fullmatch(argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def check_numbers(settings: Mapping[str, Any]) -> None:
    """Refuse numbers that no option can take: NaN, infinity, and a learning rate that is not above 0.

    Args:
        settings: options of a verb, nested, before anything is built from them. What callbacks of the user's own,
            loggers and the like are given may be infinite.

    Raises:
        ValueError: naming the first option.
    """
    for name, value in _numbers(settings, ""):
        option = name.replace(".init_args", "")
        if math.isnan(value) or (math.isinf(value) and not name.startswith(_UNBOUNDED)):
            raise ValueError(f"--{option} is {value}, expected a finite number. Fix: correct it where it is set.")
        if name.rpartition(".")[2] == "lr" and value <= 0:
            raise ValueError(
                f"--{option} is {value}, expected a learning rate above 0, such as 2e-5: with 0 nothing is learnt, and "
                "below 0 the loss would rise. Fix: correct it where it is set."
            )


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value
