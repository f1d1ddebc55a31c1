"""One process at a time in a folder, also after one that was killed.

The system holds the lock for the process and lets go of it however that ends; processes that it started hold nothing.
On disks without such locks (some network mounts, Windows) a file names the holder: one that is gone from this machine
does not count, and one on another machine counts until its file is deleted.
"""

import errno
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dowser_pl.errors import DowserError, FileError

__all__ = ["alone"]

LOCK, OWNER = ".lock", ".lock-owner"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_held: set[Path] = set()  # in this process, which the system's lock does not keep out


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder, which is made if needed.

    Args:
        folder: to be written to.
        what: "run", for the message.

    Raises:
        DowserError: if another process holds it; the message says which, where and since when.
        OSError: if it cannot be written to.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        release = _claim(folder.resolve(), what)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileError(error.errno, f"cannot be written to ({reason}); choose another folder", str(folder)) from error
    try:
        yield
    finally:
        release()
        if made:
            with suppress(OSError):  # it is in use
                folder.rmdir()


def _claim(folder: Path, what: str) -> Callable[[], None]:
    """Take the folder; returns what gives it back."""
    if folder in _held:
        raise _refusal(folder, what, _holder())
    file = _locked(folder, what)
    owner = _named(folder, what) if file is None else None
    _held.add(folder)

    def release() -> None:
        _held.discard(folder)
        if owner is not None:
            owner.unlink(missing_ok=True)
        if file is not None:
            (folder / LOCK).unlink(missing_ok=True)  # before the lock goes, so that it is not another's
            file.close()

    return release


def _locked(folder: Path, what: str) -> Any:
    """The lock's file, open; None where the disk or the system has no locks."""
    try:
        import fcntl  # noqa: PLC0415 - does not exist on Windows
    except ImportError:
        return None
    path = folder / LOCK
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                file.truncate(0)
                file.write(json.dumps(_holder()))
                file.flush()
                return file
            file.close()  # its holder has just ended and deleted it
        except OSError as error:
            file.seek(0)
            holder = _read(file.read())
            file.close()
            if error.errno in _NO_LOCKS:
                path.unlink(missing_ok=True)
                return None
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise _refusal(folder, what, holder) from error


def _is_at(file: Any, path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _named(folder: Path, what: str) -> Path:
    """The file that names this process as the holder."""
    path = folder / OWNER
    while True:
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(_holder()))
            return path
        except FileExistsError as error:
            holder = _read(path.read_text(encoding="utf-8"))
            if _may_be_alive(holder):
                refusal = _refusal(folder, what, holder)
                raise DowserError(f"{refusal}. If that process is gone, delete {path}") from error
            path.unlink(missing_ok=True)


def _may_be_alive(holder: dict[str, Any]) -> bool:
    """Whether a holder must be believed; of another machine nothing is known."""
    if holder.get("host") != platform.node() or os.name == "nt":  # there is no harmless signal on Windows
        return True
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _holder() -> dict[str, Any]:
    since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"process": os.getpid(), "host": platform.node(), "since": since}


def _read(text: str) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    return {}


def _refusal(folder: Path, what: str, holder: dict[str, Any]) -> DowserError:
    process, host, since = (holder.get(key, "unknown") for key in ("process", "host", "since"))
    return DowserError(
        f"another {what} is running in {folder}: process {process} on {host}, since {since}; wait for it or end it, or "
        "choose another folder"
    )
