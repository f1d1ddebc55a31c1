"""What a command line says before anything is built: numbers that are none, and short names of configurations.

`-c base` is `configs/base.yaml`. What a file includes by a line `# include: base, model/world` is read before it.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dowser_pl.errors import DowserError, nearest_of

__all__ = ["check_numbers", "joined_numbers", "resolve_configs"]


_NEGATIVE = re.compile(r"-((\d+\.?\d*|\.\d+)(e[-+]?\d+)?|\.?inf(inity)?|\.?nan)", re.IGNORECASE)
_KNOWN = ("dowser_pl", "torch", "bitsandbytes", "lightning", "transformers")  # whose classes take no such number
_UNBOUNDED = ("trainer.callbacks", "trainer.logger", "trainer.strategy", "trainer.plugins", "trainer.profiler")


def joined_numbers(args: Sequence[str]) -> list[str]:
    """`--lr -1e-3` as `--lr=-1e-3`: parsers take a negative number with an exponent for the name of an option.

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
        settings: options of a verb, nested, before anything is built from them. What classes of the user's own, loggers
            and the like are given may be anything, but for an optimizer.

    Raises:
        DowserError: naming the first option.
    """
    for name, value in _numbers(settings, ""):
        option = name.replace(".init_args", "")
        if math.isnan(value) or (math.isinf(value) and not name.startswith(_UNBOUNDED)):
            raise DowserError(f"--{option} is {value}, expected a finite number. Fix: correct it where it is set.")
        if name.rpartition(".")[2] == "lr" and value <= 0:
            raise DowserError(
                f"--{option} is {value}, expected a learning rate above 0, such as 2e-5: with 0 nothing is learnt, and "
                "below 0 the loss would rise. Fix: correct it where it is set."
            )


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        path = value.get("class_path")
        if isinstance(path, str) and "." in path and path.partition(".")[0] not in _KNOWN and name != "model.optimizer":
            return
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value


_INCLUDE = "# include:"
_PACKAGED = Path(__file__).parents[1] / "configs"  # in a wheel
_CHECKOUT = Path(__file__).parents[2] / "configs"  # in a clone


def resolve_configs(args: list[str]) -> list[str]:
    """Replace short names after `-c`, `-c=`, `--config` and `--config=` by paths; other values stay as they are.

    A file of that path wins; then `configs/<name>[.yaml]` under the working folder, then the shipped ones. Files that
    one includes are put before it, each with its own `-c`, unless they stand there: resolving twice changes nothing.

    Args:
        args: the command line without the program.

    Raises:
        DowserError: if neither exists, naming what there is and what was probably meant; or files include each other.
    """
    resolved: list[str] = []
    for position, argument in enumerate(args):
        if argument.startswith("--config="):
            option, name = ["--config="], argument.removeprefix("--config=")
        elif argument.startswith("-c") and len(argument) > 2:  # as parsers take it: -cbase, -c=base
            option, name = ["-c", ""], argument[2:].removeprefix("=")
        elif position and args[position - 1] in ("-c", "--config"):
            option, name = [resolved.pop(), ""], argument
        else:
            resolved.append(argument)
            continue
        path = _find(name)
        for each in _included(path, ()):
            resolved += [] if each in resolved else ["-c", each]
        resolved += [*option[:-1], option[-1] + path]
    return resolved


def _included(path: str, by: tuple[str, ...]) -> Iterator[str]:
    """The files that one includes, and before each those that it includes itself."""
    if path in by:
        raise DowserError(f"configurations include each other: {' includes '.join((*by, path))}")
    for name in _names_included(Path(path)):
        found = _find(name)
        yield from _included(found, (*by, path))
        yield found


def _names_included(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):  # told where it is parsed
        return []
    named = ",".join(line.removeprefix(_INCLUDE) for line in lines if line.startswith(_INCLUDE))
    return [name.strip() for name in named.split(",") if name.strip()]


def _find(name: str) -> str:
    if Path(name).is_file():
        return name
    relative = name.removeprefix("configs/")
    for folder in (Path("configs"), _PACKAGED, _CHECKOUT):
        for candidate in (folder / relative, folder / f"{relative}.yaml"):
            if candidate.is_file():
                return str(candidate)
    meant = _meant(relative.removesuffix(".yaml"))
    choice = "" if meant else f" ({', '.join(shipped())})"
    raise DowserError(
        f"there is no configuration file {name!r}, neither under {Path.cwd()} nor among the shipped ones{choice}{meant}"
    )


def shipped() -> list[str]:
    """Short names of the configurations that come with the package."""
    folder = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def _meant(name: str) -> str:
    """What was probably meant; `dare` and `modle/world` find `method/dare` and `model/world`."""
    folder = Path("configs")
    own = (str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
    names = sorted({*own, *shipped()})
    without_folder: dict[str, str] = {}
    for each in names:
        last = each.rpartition("/")[2]
        without_folder[last] = f"{without_folder[last]} or {each}" if last in without_folder else each
    whole = dict(zip(names, names, strict=True))
    first, second = (whole, without_folder) if "/" in name else (without_folder, whole)
    return nearest_of(name, first) or nearest_of(name, second)
