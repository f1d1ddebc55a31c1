"""Atomic writes: under the final name stands the whole new file or the whole old one, never half of either.

Everything is written to a hidden neighbour `.<name>.<writer>.tmp<suffix>` on the same disk, forced to the disk
(fsync) and then renamed over the final name. Replacing a *folder*, or a file by one, takes two renames (the old one
aside, the new one in): between them the name is briefly absent. The old one is put back if the second fails, and by
`put_back` after a kill.

A killed process leaves such neighbours behind, as large as a model. The next write into the folder deletes them, if
their writer is gone. It stands in the name: machine (and container), process and when that began, so that neither a
process of another run nor a later one of the same number is taken for it. Of another machine nothing can be known: its
neighbours count as left behind when nothing was written in them for a day.
"""

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from dowser_pl.errors import DowserError, FileError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
FULL_DISK_WORDS = ("No space left on device", "Disk quota exceeded", "os error 28")  # safetensors, Rust
NEARLY_FULL = 2**20  # torch.save only says "unexpected pos" when a write fails; believed below this many bytes
DAY = 24 * 3600.0
# earlier versions wrote eight random digits alone
NEIGHBOUR = re.compile(
    r"\.(?P<name>.+)\.(?:(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-(?P<began>\d+)-)?[0-9a-f]{8}\."
    r"(?:tmp(?P<suffix>\.[^.]+)?|(?P<aside>old))"
)


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write a whole file (text as UTF-8), making its folder if needed.

    Raises:
        OSError: the disk is full (message: file, bytes needed, bytes free) or the file cannot be written; the
            old file, if any, is untouched and nothing half-written remains.
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    with atomic_path(path, needed_bytes=len(content)) as temporary:
        temporary.write_bytes(content)


def file_name(name: str) -> str:
    """A name that is a file's on every system, and no other's."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@contextmanager
def atomic_path(path: str | Path, needed_bytes: int | None = None, any_kind: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write a file or a folder to; it takes the final name when the block ends well.

    For libraries that write by path: the temporary name keeps the suffix (".safetensors", ".png"). If the block
    raises, what it wrote is removed and the old file or folder stays.

    Args:
        path: final name of the file or folder; its parent folder is made if needed. A link is followed.
        needed_bytes: size of what will be written, if known: a disk without that much room is refused at once.
        any_kind: see `rename_over`.

    Raises:
        OSError: a folder stands where a file is to be written, or a file where a folder is.
        OSError: the disk is full, also where the library hides that in an exception of its own.
        DowserError: the block wrote nothing to the temporary path.
    """
    final = Path(os.path.realpath(path))
    final.parent.mkdir(parents=True, exist_ok=True)
    sweep(final)
    temporary = final.with_name(f".{final.stem}.{_writer()}.tmp{final.suffix}")
    try:
        disk = shutil.disk_usage(final.parent)
        if needed_bytes is not None and disk.total and needed_bytes > disk.free:  # some mounts report 0 of 0
            raise OSError(errno.ENOSPC, "No space left on device")
        yield temporary
        if not temporary.exists():
            raise DowserError(f"Nothing was written to {temporary}, so {path} stays as it is.")
        open_to_others(temporary)
        force_to_disk(temporary)
        rename_over(temporary, final, any_kind)
    except BaseException as error:
        full = is_full_disk(error, final.parent)
        remove(temporary)
        if full:
            raise full_disk_error(final, needed_bytes) from error
        raise


def check_writable(folder: str | Path, option: str) -> None:
    """Find out early whether files can be made in a folder, or where it is to be made; nothing is left behind.

    Args:
        folder: that may not be there yet.
        option: which names it, for the message.

    Raises:
        OSError: they cannot, or there is no room for the smallest.
    """
    wanted = Path(folder).absolute()
    there = next(place for place in (wanted, *wanted.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(4096))
            probe.flush()
    except OSError as error:
        raise FileError(
            error.errno,
            f"cannot write into {there} ({error.strerror}), got {option} {folder}, expected a folder that can be "
            f"written to. Fix: set {option} to another folder, or free some space there",
        ) from error


def full_disk_error(final: Path, needed_bytes: int | None) -> FileError:
    """The error to show a person; call it after the temporary file is gone, so that the free space is right."""
    free = f"{shutil.disk_usage(final.parent).free:,}"
    needs = f"more than the {free} bytes" if needed_bytes is None else f"{needed_bytes:,} bytes, of {free}"
    kept = "The old one is unchanged." if final.exists() else "Nothing was left behind."
    return FileError(
        errno.ENOSPC,
        f"The disk is full: writing needs {needs} that are free there. {kept} "
        "Free some space, or choose a folder on another disk, and write again",
        str(final),
    )


def is_full_disk(error: BaseException, folder: Path) -> bool:
    """True if the error says that the disk or the quota is full, in whichever words its library has for it."""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return True
    text = str(error)
    torch_writer = "inline_container" in text and shutil.disk_usage(folder).free < NEARLY_FULL
    return torch_writer or any(words in text for words in FULL_DISK_WORDS)


def rename_over(temporary: Path, final: Path, any_kind: bool = False) -> None:
    """Give a finished temporary file or folder its final name, replacing what is there.

    Args:
        temporary: what was written.
        final: its name.
        any_kind: whether a file may replace a folder, and a folder a file: only where both are ours, as checkpoints.

    Raises:
        OSError: if they are of two kinds and may not be; both stay.
    """
    if final.exists() and final.is_dir() != temporary.is_dir() and not any_kind:
        kind, other = ("a folder", "a file") if final.is_dir() else ("a file", "a folder")
        raise FileError(errno.EEXIST, f"{kind} stands where {other} is to be written, move it away", str(final))
    if not final.exists() or not (temporary.is_dir() or final.is_dir()):
        temporary.replace(final)
        sync_folder(final.parent)
        return
    aside = final.with_name(f".{final.name}.{_writer()}.old")
    final.rename(aside)
    try:
        temporary.rename(final)
    except BaseException:
        aside.rename(final)
        raise
    sync_folder(final.parent)
    remove(aside)


def put_back(final: Path) -> None:
    """Give its name back to what a kill between the two renames of `rename_over` left aside.

    Several processes may call it at once.
    """
    for aside in [] if final.exists() else filter(abandoned, final.parent.glob(f".{escape(final.name)}.*.old")):
        with suppress(FileNotFoundError):  # another process was faster
            aside.rename(final)
        return


def sweep(final: Path) -> None:
    """Delete what killed writes left beside a file or folder; of names without a writer only those made for this one.

    What was set aside and not replaced gets its name back. What may not be deleted stays.
    """
    for each in final.parent.glob(".*"):
        found = NEIGHBOUR.fullmatch(each.name)
        if found is None or not abandoned(each):
            continue
        mine = final.name == found["name"] + ("" if found["aside"] else found["suffix"] or "")
        if found["machine"] is None and not mine:  # may be anybody's
            continue
        with suppress(OSError):
            if found["aside"]:
                put_back(each.with_name(found["name"]))
            remove(each)


def abandoned(neighbour: Path) -> bool:
    """Whether nobody writes it any more; so it is where no writer stands in the name."""
    found = NEIGHBOUR.fullmatch(neighbour.name)
    if found is None or found["machine"] is None:
        return True
    if found["machine"] == _machine() and os.name != "nt":
        return not _runs(int(found["process"]), int(found["began"]))
    written = [neighbour, *neighbour.rglob("*")]
    with suppress(FileNotFoundError):  # it is being written, or renamed
        return time.time() - max(each.stat().st_mtime for each in written) > DAY
    return False


def _writer() -> str:
    """This process, and something of its own for each write."""
    return f"{_machine()}-{os.getpid()}-{_began(os.getpid())}-{secrets.token_hex(4)}"


def _machine() -> str:
    """Where process numbers are those of this process."""
    numbers = Path("/proc/self/ns/pid")  # a container has its own
    kind = numbers.readlink() if numbers.is_symlink() else ""
    return hashlib.sha256(f"{platform.node()} {kind}".encode()).hexdigest()[:8]


def _runs(process: int, began: int) -> bool:
    try:
        os.kill(process, 0)  # asks, and does nothing to it
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return _began(process) == began


def _began(process: int) -> int:
    """When it did, in the unit of the system; 0 where the system does not tell, -1 where it has ended already."""
    try:
        told = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    state, *fields = told.rpartition(")")[2].split()
    return -1 if state in "ZX" else int(fields[18])


def open_to_others(path: Path) -> None:
    """Permissions of any new file, for a file or all files of a folder; safetensors lets only its owner read."""
    mask = os.umask(0o077)  # the only way to ask
    os.umask(mask)
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            file.chmod(0o666 & ~mask)


def force_to_disk(path: Path) -> None:
    """Flush (fsync) a file, or every file of a folder and the folders themselves."""
    if not path.is_dir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        return
    for entry in path.iterdir():
        force_to_disk(entry)
    sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Flush (fsync) a folder, so that a rename in it survives a power cut; Windows has no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or folder of ours if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
