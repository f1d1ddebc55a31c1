import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dowser_pl.errors import FileError
from dowser_pl.files import atomic
from dowser_pl.files.atomic import abandoned, atomic_path, check_writable, put_back, rename_over, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", ["text \u2192 \u732b\n", b"\x00\xff", "", b""])
def test_writes_and_replaces(tmp_path: Path, data: str | bytes) -> None:
    path = tmp_path / "new" / "file.bin"
    for content in (b"old", data):
        write_atomically(path, content)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert names(path.parent) == ["file.bin"]


def test_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="halfway"), atomic_path(path) as temporary:
        assert temporary.suffix == ".json"
        assert temporary.parent == tmp_path
        temporary.write_text("half")
        raise RuntimeError("halfway")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["report.json"]


def test_interruption_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Nothing was written"), atomic_path(tmp_path / "a"):
        pass


def test_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def write_folder(folder: Path, text: str) -> None:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights").write_text(text)


def test_folder_replaces_a_folder(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic_path(tmp_path / "model") as temporary:
            write_folder(temporary, text)
            (temporary / text).touch()
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["new", "sub"]
    assert (tmp_path / "model" / "sub" / "weights").read_text() == "new"


def test_a_file_and_a_folder_replace_each_other(tmp_path: Path) -> None:
    path, new = tmp_path / "last", tmp_path / "new"
    path.write_text("file")
    write_folder(new, "folder")
    with pytest.raises(FileError, match="a file stands where a folder is to be written"):
        rename_over(new, path)
    assert path.read_text() == "file"
    rename_over(new, path, any_kind=True)
    assert (path / "sub" / "weights").read_text() == "folder" and names(tmp_path) == ["last"]
    new.write_text("file again")
    with pytest.raises(FileError, match="a folder stands where a file is to be written"):
        write_atomically(path, "file again")
    assert (path / "sub" / "weights").read_text() == "folder"
    rename_over(new, path, any_kind=True)
    assert path.read_text() == "file again" and names(tmp_path) == ["last"]


@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_while_a_folder_is_replaced_loses_nothing(tmp_path: Path, renames: int) -> None:
    """Killed after one rename, or after both."""
    path, new = tmp_path / "last [1]", tmp_path / "new"
    write_folder(path, "old")
    write_folder(new, "new")
    code = (
        "import os, sys; from pathlib import Path; from dowser_pl.files import atomic\n"
        "left, rename = int(sys.argv[3]), Path.rename\n"
        "def killing(self, target):\n"
        "    global left\n"
        "    rename(self, target); left -= 1\n"
        "    if not left: os.kill(os.getpid(), 9)\n"
        "Path.rename = killing\n"
        "atomic.rename_over(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(new), str(path), str(renames)], check=False)
    assert ended.returncode == -9 and path.exists() == (renames == 2)
    put_back(path)
    put_back(path)
    assert (path / "sub" / "weights").read_text() == ("old" if renames == 1 else "new")
    put_back(tmp_path / "never was")
    assert not (tmp_path / "never was").exists()


def test_old_folder_comes_back_if_the_new_cannot_be_placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "model", "old")
    rename = Path.rename

    def fail_for_new(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(errno.EIO, "broken")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(OSError, match="broken"), atomic_path(tmp_path / "model") as temporary:
        write_folder(temporary, "new")
    assert (tmp_path / "model" / "sub" / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"]


def assert_full_disk(caught: pytest.ExceptionInfo[OSError], path: Path) -> None:
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert names(path.parent) == [path.name]


def test_known_size_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 8, 2))
    with pytest.raises(OSError, match=r"needs 3 bytes, of 2 that are free .* old one is unchanged") as caught:
        write_atomically(path, "new")
    assert_full_disk(caught, path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_disk_full_while_writing(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    full = pytest.raises(OSError, match="The disk is full: writing needs more than")
    with full as caught, atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert_full_disk(caught, path)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(("free", "expected"), [(100, OSError), (2**30, RuntimeError)])
def test_torch_hides_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, expected: type[Exception]
) -> None:
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**31, 0, free))
    with pytest.raises(expected), atomic_path(tmp_path / "last.ckpt"):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such permissions")
def test_files_get_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        for name in ("file.safetensors", "folder"):
            with atomic_path(tmp_path / name) as temporary:
                target = temporary if name != "folder" else temporary / "inside.safetensors"
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(b"weights")
                target.chmod(0o600)  # as safetensors does
    finally:
        os.umask(old)
    for file in (tmp_path / "file.safetensors", tmp_path / "folder" / "inside.safetensors"):
        assert file.stat().st_mode & 0o777 == 0o640


def test_a_folder_that_can_be_written_to_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path, "--here")
    check_writable(tmp_path / "run" / "deep", "--here")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.tempfile, "TemporaryFile", refuse)
    with pytest.raises(
        OSError, match=rf"cannot write into {tmp_path} \({os.strerror(number)}\), got --run .*/run/a, expe"
    ):
        check_writable(tmp_path / "run" / "a", "--run")


def test_a_file_where_a_folder_is_to_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(OSError, match=rf"cannot write into {tmp_path}/a \(Not a directory\)"):
            check_writable(folder, "--run")


WRITING = (
    "import sys, time; from pathlib import Path; from dowser_pl.files.atomic import atomic_path\n"
    "with atomic_path(sys.argv[1]) as temporary:\n"
    "    (temporary / 'sub').mkdir(parents=True); (temporary / 'sub' / 'weights').write_text('half')\n"
    "    print('begun', flush=True); time.sleep(60)\n"
)


@pytest.fixture
def writing(tmp_path: Path):
    """A process in the middle of writing a folder `model`."""
    with subprocess.Popen([sys.executable, "-c", WRITING, str(tmp_path / "model")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="tells less of processes")
@pytest.mark.parametrize("other", ["model", "report.json"])
def test_what_a_killed_write_left_is_deleted_by_the_next_one_in_its_folder(tmp_path: Path, writing, other: str) -> None:
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".model.") and not abandoned(left)
    write_atomically(tmp_path / other, "while it lives")
    assert left.exists()
    writing.kill()
    os.waitid(os.P_PID, writing.pid, os.WEXITED | os.WNOWAIT)  # ended, and nobody has asked for its status yet
    write_atomically(tmp_path / other, "after")
    assert names(tmp_path) == [other]


def leave(folder: Path, name: str, age: float = 0.0) -> Path:
    """A file or folder of that name, last written so many seconds ago."""
    path = folder / name
    if name.endswith(".json"):
        path.write_text("half")
    else:
        write_folder(path, "half")
    for each in [path, *path.rglob("*")]:
        os.utime(each, (time.time() - age, time.time() - age))
    return path


def test_another_machine_is_believed_to_be_writing_for_a_day(tmp_path: Path) -> None:
    fresh = leave(tmp_path, ".model.00000000-1-1-0123abcd.tmp")
    old = leave(tmp_path, ".report.00000000-1-1-0123abcd.tmp.json", atomic.DAY + 60)
    growing = leave(tmp_path, ".other.00000000-1-1-0123abcd.tmp", atomic.DAY + 60)
    (growing / "sub" / "weights").write_text("more")
    write_atomically(tmp_path / "config.yaml", "new")
    assert [path.exists() for path in (fresh, old, growing)] == [True, False, True]


@pytest.mark.skipif(sys.platform != "linux", reason="does not tell when a process began")
def test_a_later_process_of_the_same_number_is_not_taken_for_the_writer(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "mine") as temporary:
        machine, process, began, _ = temporary.name.split(".")[2].split("-")
        earlier = leave(tmp_path, f".model.{machine}-{process}-{int(began) - 1}-0123abcd.tmp")
        write_atomically(tmp_path / "config.yaml", "new")
        assert temporary.parent == tmp_path and not earlier.exists()
        temporary.write_text("mine")
        write_atomically(tmp_path / "config.yaml", "newer")
        assert temporary.exists()


def test_names_without_a_writer_are_deleted_where_their_own_file_is_written(tmp_path: Path) -> None:
    left = leave(tmp_path, ".model.0123abcd.tmp")
    aside = leave(tmp_path, ".model.4567cdef.old")
    others = [".cache", ".model.tmp", ".model.swp.tmp", ".other.0123abcd.tmp", ".report.0123abcd.tmp.json"]
    kept = [leave(tmp_path, name) for name in others]
    write_folder(tmp_path / "model", "old")
    with atomic_path(tmp_path / "model") as temporary:
        write_folder(temporary, "new")
    assert not left.exists() and not aside.exists() and all(path.exists() for path in kept)
    write_atomically(tmp_path / "report.json", "new")
    assert names(tmp_path) == sorted([*others[:-1], "model", "report.json"])


def test_what_was_set_aside_and_not_replaced_gets_its_name_back(tmp_path: Path) -> None:
    leave(tmp_path, ".model.00000000-1-1-0123abcd.old", atomic.DAY + 60)
    leave(tmp_path, ".model.00000000-1-1-4567cdef.tmp", atomic.DAY + 60)
    write_atomically(tmp_path / "report.json", "new")
    assert names(tmp_path) == ["model", "report.json"]
    assert (tmp_path / "model" / "sub" / "weights").read_text() == "half"
