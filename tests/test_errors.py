"""Errors that are meant for people, and how they are told from bugs."""

import ast
import pickle
from pathlib import Path

import pytest
from torch._utils import ExceptionWrapper

from dowser_pl.errors import DowserError, FileError, MissingFileError, message_of

PACKAGE = Path(__file__).parent.parent / "dowser_pl"


def test_ours_are_of_the_kinds_that_python_has_for_them():
    assert issubclass(DowserError, ValueError) and not issubclass(DowserError, OSError)
    assert issubclass(FileError, OSError) and not issubclass(FileError, ValueError)  # a bad disk is no bad row
    assert issubclass(MissingFileError, FileError) and issubclass(MissingFileError, FileNotFoundError)


@pytest.mark.parametrize("error", [DowserError("got 1"), FileError(28, "full", "a.txt"), MissingFileError("no a.txt")])
def test_ours_travel_between_processes(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) == message_of(again)


@pytest.mark.parametrize(
    "error", [ValueError("a"), OSError("a"), KeyError("a"), FileNotFoundError(2, "gone", "a"), None]
)
def test_other_errors_are_not_meant_for_people(error):
    assert message_of(error) is None


def test_libraries_raise_their_own_from_ours():
    def wrapped(ours):
        try:
            raise ours
        except ValueError as error:
            raise TypeError("a library says") from error

    with pytest.raises(TypeError) as caught:
        wrapped(DowserError("got 1, expected 2"))
    assert message_of(caught.value) == "got 1, expected 2"
    with pytest.raises(TypeError) as caught:
        wrapped(ValueError("a bug"))
    assert message_of(caught.value) is None


def test_a_bug_that_appears_while_ours_is_handled_is_still_a_bug():
    with pytest.raises(ValueError) as caught:
        try:
            raise DowserError("got 1")
        except DowserError:
            int("x")
    assert message_of(caught.value) is None


def test_who_owns_a_folder_is_the_users_to_ask():
    assert message_of(PermissionError(13, "Permission denied", "/x")).endswith("ask who owns this one")


class OddError(DowserError):
    """A kind of ours, as some rooms have."""


def from_worker(error):
    """What a data loader raises for an error of its worker process."""
    try:
        raise error
    except Exception:  # noqa: BLE001 - as torch does
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(type(error)) as caught:
        wrapper.reraise()
    assert "Original Traceback" in str(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", [DowserError, OddError, FileError, MissingFileError])
def test_the_traceback_of_a_worker_process_is_not_shown(kind):
    assert message_of(from_worker(kind("row 3: no answer.\nFix: add one"))) == "row 3: no answer.\nFix: add one"


def test_a_bug_in_a_worker_process_keeps_its_traceback():
    assert message_of(from_worker(ValueError("a bug"))) is None


def raised(tree):
    """Names of what is raised or returned as an error."""
    for node in ast.walk(tree):
        made = getattr(node, "exc", None) or getattr(node, "value", None)
        if isinstance(node, (ast.Raise, ast.Return)) and isinstance(made, ast.Call) and isinstance(made.func, ast.Name):
            yield made.func.id, node.lineno


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(PACKAGE)) for f in FILES])
def test_what_is_raised_on_purpose_is_ours(path):
    """Who writes `raise ValueError` means people to read it, and they would get a traceback."""
    plain = {"ValueError", "OSError", "FileNotFoundError", "FileExistsError", "TypeError", "KeyError"}
    inside = {"files/atomic.py": {"OSError"}, "distributed/collectives.py": {"OSError"}}  # what another is made from
    allowed = inside.get(str(path.relative_to(PACKAGE)), set())
    found = {name: line for name, line in raised(ast.parse(path.read_text())) if name in plain - allowed}
    assert not found, f"raise DowserError, FileError or MissingFileError: {found}"
