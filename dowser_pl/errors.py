"""What was probably meant by a name that does not exist: the end of an error message."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

__all__ = ["nearest_names", "nearest_of", "nearest_path"]


def nearest_path(path: Path) -> str:
    """``, did you mean X?`` if a neighbour of a path that does not exist has a similar name, else nothing."""
    folder = path.expanduser().absolute().parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return nearest_of(path.name, {name: path.parent / name for name in names})


def nearest_of(name: str, meant: Mapping[str, object]) -> str:
    """``, did you mean X?`` with what the most similar of the names stands for, else nothing."""
    near = get_close_matches(name, meant, n=1)
    return f", did you mean {meant[near[0]]}?" if near else ""


def nearest_names(name: str, names: Iterable[str]) -> str:
    """``; the nearest there are X, Y`` or nothing."""
    near = get_close_matches(name, names, n=3)
    return f"; the nearest there are {', '.join(near)}" if near else ""
