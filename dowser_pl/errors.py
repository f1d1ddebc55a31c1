"""Errors that are meant for people, and what was probably meant by a name that does not exist.

Whoever runs the command line is shown the message of one of these alone. Any other error is a bug, here or in a
library, and keeps its traceback.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

__all__ = ["DowserError", "FileError", "MissingFileError", "message_of", "nearest_names", "nearest_of", "nearest_path"]


class DowserError(ValueError):
    """Something was given that cannot be used: the message says what, what was expected, and how to mend it."""


class FileError(OSError):
    """A file, folder or disk that cannot be read or written: the message says which, why, and what to do."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder that is not there: the message says where it was looked for and what was probably meant."""


def message_of(error: BaseException | None) -> str | None:
    """What to tell a person instead of showing a traceback.

    Args:
        error: what ended a command. Libraries raise errors of their own from ours, so its causes are looked at too.

    Returns:
        The message; None = the error is not meant for people.
    """
    while error is not None:
        if isinstance(error, (DowserError, FileError)):
            return _without_traceback(error)
        if isinstance(error, PermissionError) and error.filename is not None:
            return f"{error}; choose another folder, or ask who owns this one"
        error = error.__cause__
    return None


def _without_traceback(error: BaseException) -> str:
    """The message; torch puts the traceback of a data loader's worker process into it, the message at the end."""
    text = str(error)
    if "Original Traceback" not in text:
        return text
    return text.rpartition(f"{type(error).__qualname__}: ")[2].strip()


def nearest_path(path: Path) -> str:
    """`, did you mean X?` if a neighbour of a path that does not exist has a similar name, else nothing."""
    folder = path.expanduser().absolute().parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return nearest_of(path.name, {name: path.parent / name for name in names})


def nearest_of(name: str, meant: Mapping[str, object]) -> str:
    """`, did you mean X?` with what the most similar of the names stands for, else nothing."""
    near = get_close_matches(name, meant, n=1, cutoff=0.65)  # "mine" is no slip of "single"
    return f", did you mean {meant[near[0]]}?" if near else ""


def nearest_names(name: str, names: Iterable[str]) -> str:
    """`; the nearest there are X, Y` or nothing."""
    near = get_close_matches(name, names, n=3)
    return f"; the nearest there are {', '.join(near)}" if near else ""
