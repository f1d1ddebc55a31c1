"""A class of anybody's, by its path in a setting: `my_package.Mine` of the working folder, or of what is installed."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, TypeVar

from dowser_pl.errors import DowserError, nearest_of

__all__ = ["class_named"]

Kind = TypeVar("Kind")


def class_named(path: str, kind: type[Kind], where: str, known: Mapping[str, type[Kind]]) -> type[Kind]:
    """The class that a setting names.

    Args:
        path: one of the names in `known`, or module and class with a dot between.
        kind: what it must be a subclass of.
        where: the setting, for errors: "metric of task 'colours'".
        known: names that stand for a class without a module.

    Raises:
        DowserError: there is no such name, module or class, its module cannot be imported, or it is no `kind`.
    """
    if path in known:
        return known[path]
    module, _, name = path.rpartition(".")
    if not all(part.isidentifier() for part in path.split(".")) or not module:
        expected = [*known, f"the path of a subclass of {kind.__name__}, such as my_package.Mine"]
        raise DowserError(f"{where}: got {path!r}, expected one of: {', '.join(expected)}{_meant(path, known)}")
    members = vars(_imported(module, path, where))
    found = members.get(name)
    if isinstance(found, type) and issubclass(found, kind):
        return found
    fitting = [key for key, value in members.items() if isinstance(value, type) and issubclass(value, kind)]
    got = f"{module} has no {name!r}" if name not in members else f"{path} is {_told(found)}"
    raise DowserError(
        f"{where}: {got}, expected a subclass of {kind.__module__.partition('.')[0]}'s {kind.__name__}"
        f"{_meant(name, fitting, module + '.')}"
    )


def _imported(module: str, path: str, where: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{module}.".startswith(f"{missing}."):  # something that the module itself imports
            raise DowserError(f"{where}: {path} cannot be imported: {error}. Fix: install what is missing") from error
        parent, _, name = missing.rpartition(".")
        places = list(getattr(import_module(parent), "__path__", [])) if parent else None
        names = [each.name for each in iter_modules(places)]
        raise DowserError(
            f"{where}: got {path!r}, and there is no module {missing!r}, neither in the working folder {Path.cwd()} "
            f"nor installed{_meant(name, names, parent and parent + '.')}"
        ) from error
    except Exception as error:
        raise DowserError(
            f"{where}: {path} cannot be imported: {type(error).__name__}: {error}. Fix: python -c 'import {module}'"
        ) from error


def _meant(name: str, names: Iterable[str], before: str = "") -> str:
    return nearest_of(name, {each: before + each for each in names})


def _told(found: Any) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else f"no class but {type(found).__name__}"
