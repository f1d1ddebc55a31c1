"""One process at a time, however the one before it ended."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys

import pytest

from dowser_pl.files import locking
from dowser_pl.files.locking import alone

HOLD = """
import os, sys, time
from pathlib import Path
from dowser_pl.files.locking import alone
with alone(Path(sys.argv[1]), "run"):
    if len(sys.argv) > 2 and os.fork() == 0:
        os.closerange(0, 3)
        time.sleep(60)
    print("held", flush=True)
    sys.stdin.readline()
"""


def hold(folder, *more):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def refused(folder):
    with pytest.raises(ValueError, match="another run is running in") as caught, alone(folder, "run"):
        pass
    return str(caught.value)


def test_the_second_hears_of_the_first(tmp_path):
    first = hold(tmp_path / "run")
    said = refused(tmp_path / "run")
    assert f"process {first.pid} on {platform.node()}, since 20" in said and "UTC; wait for it or end it, or" in said
    first.communicate("\n")
    with alone(tmp_path / "run", "run"):
        assert (tmp_path / "run").is_dir()


def test_a_killed_one_holds_nothing_even_if_a_child_of_it_lives_on(tmp_path):
    first = hold(tmp_path, "fork")
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (tmp_path / ".lock").exists()
    with alone(tmp_path, "run"):
        assert f"process {os.getpid()} on" in refused(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_in_one_process_as_well_and_only_until_it_ends(tmp_path):
    with pytest.raises(KeyError), alone(tmp_path / "a", "run"):
        with alone(tmp_path / "b", "run"):
            refused(tmp_path / "a")
            refused(tmp_path / "b" / ".." / "a")
        raise KeyError
    assert list(tmp_path.iterdir()) == [], "a folder in which nothing was written goes again"
    with alone(tmp_path / "a", "run"):
        (tmp_path / "a" / "report.json").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["report.json"]


def test_one_that_ends_while_another_begins_is_not_taken_for_it(tmp_path, monkeypatch):
    """The file is deleted between opening and locking: the lock of a file without a name keeps nobody out."""
    import fcntl  # noqa: PLC0415 - does not exist everywhere

    real, calls = fcntl.lockf, []

    def lockf(file, how):
        if not calls:
            (tmp_path / ".lock").unlink()
        calls.append(how)
        return real(file, how)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with alone(tmp_path, "run"):
        assert len(calls) == 2 and json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


@pytest.fixture
def without_locks(monkeypatch):
    """As on a disk that has none."""
    import fcntl  # noqa: PLC0415

    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)


def test_without_locks_a_file_names_the_holder(tmp_path, without_locks, monkeypatch):
    with alone(tmp_path, "run"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock-owner"]
        monkeypatch.setattr(locking, "_held", set())  # as another process
        said = refused(tmp_path)
        assert f"process {os.getpid()} on" in said and f"If that process is gone, delete {tmp_path}" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_without_locks_a_dead_holder_does_not_count_unless_it_may_live_elsewhere(tmp_path, without_locks, host):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    holder = {"process": gone.pid, "host": platform.node() if host == "here" else "other", "since": "yesterday"}
    (tmp_path / ".lock-owner").write_text(json.dumps(holder))
    if host == "elsewhere":
        assert f"process {gone.pid} on other, since yesterday" in refused(tmp_path)
        return
    with alone(tmp_path, "run"):
        assert json.loads((tmp_path / ".lock-owner").read_text())["process"] == os.getpid()


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=r"cannot be written to \(.*\); choose another folder"), alone(folder, "run"):
            pass
