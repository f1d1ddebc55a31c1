"""Digests in a checkpoint: of every tensor by its name, and one of all that is plain data.

PyTorch writes checksums into its files and does not compare them when it reads. Nothing is read twice for the digests:
they are taken of tensors in memory, or of pages of the file that are used right after.
"""

import errno
import hashlib
import logging
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dowser_pl.distributed import collectives
from dowser_pl.errors import DowserError
from dowser_pl.files.digests import digests

__all__ = ["checked", "of_the_disk", "read_file", "sealed"]

_TENSORS, _PLAIN = "digests_of_tensors", "digest_of_the_rest"  # two, so that neither is lost unseen
_SAID = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def sealed(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint with digests of what is in it, for `checked`; the given one stays as it is."""
    plain, tensors = _told(checkpoint)
    return {**checkpoint, _TENSORS: digests(tensors), _PLAIN: plain}


def checked(checkpoint: Any, path: str | Path) -> Any:
    """What was read of a file, without its digests, if it is what was written.

    Args:
        checkpoint: as `sealed` gave it; one without digests, of an earlier version or another program, is let
            pass, and told of once.
        path: for messages.

    Raises:
        DowserError: if it is not; the message names the first tensor that differs.
    """
    if not isinstance(checkpoint, dict):
        return checkpoint
    named, rest = checkpoint.pop(_TENSORS, None), checkpoint.pop(_PLAIN, None)
    if named is None and rest is None:
        if collectives.rank() == 0:
            _tell(str(path))
        return checkpoint
    plain, tensors = _told(checkpoint)
    if not isinstance(named, dict) or plain != rest or set(named) != set(tensors):
        raise DowserError(
            f"{path} is damaged: got other names, numbers or text in it than were written. Copy it again, or give "
            "another checkpoint"
        )
    for name, got in digests(tensors).items():
        if got != named[name]:
            raise DowserError(
                f"{path} is damaged: got digest {got[:12]} for the tensor {name!r}, expected {str(named[name])[:12]}. "
                "Copy it again, or give another checkpoint"
            )
    return checkpoint


def read_file(path: str | Path, weights_only: bool | None = None, mmap: bool = False) -> Any:
    """A checkpoint that lies in a file, into host memory.

    Args:
        path: the file.
        weights_only: as of `torch.load`.
        mmap: leave tensors in the file until they are used; they are all read once here, to compare them.

    Raises:
        DowserError: if it is not one, or not what was written.
        OSError: if there is none.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=mmap)
    except Exception as error:  # a pickle of changed bytes can end in any, and its words advise to trust it
        if of_the_disk(error):
            raise
        raise DowserError(
            f"{path} is not a readable checkpoint ({type(error).__name__}), expected a .ckpt file that `fit` wrote; it "
            "is damaged or something else, copy it again or give another one"
        ) from error
    return checked(found, path)


def of_the_disk(error: Exception) -> bool:
    """Whether reading failed for a reason that the error names itself, the bytes of the file being none of it.

    "Invalid argument" is a place in the file that changed or missing bytes made up.
    """
    return isinstance(error, OSError) and error.errno != errno.EINVAL


def _told(checkpoint: Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Digest of structure, keys and plain values, and the tensors by name."""
    tensors: dict[str, Tensor] = {}
    content = hashlib.sha256()
    for line in _lines(checkpoint, (), tensors):
        content.update(f"{line}\n".encode(errors="surrogatepass"))
    return content.hexdigest(), tensors


def _lines(value: Any, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Iterator[str]:
    """A value as text that differs where it does; of objects of classes unknown here, only their class."""
    if isinstance(value, Tensor):
        tensors[".".join(path)] = value
        yield f"tensor {len(tensors)} {'.'.join(path)!r}"
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}"
        for key, each in value.items():
            yield _text(key)
            yield from _lines(each, (*path, str(key)), tensors)
    elif isinstance(value, list | tuple):
        yield f"sequence {len(value)}"
        for number, each in enumerate(value):
            yield from _lines(each, (*path, str(number)), tensors)
    elif isinstance(value, set | frozenset):
        yield f"set {sorted(map(_text, value))}"
    else:
        yield _text(value)


def _text(value: Any) -> str:
    kind = type(value).__qualname__
    return f"{kind} {value!r}" if isinstance(value, _SAID) else kind


@cache
def _tell(path: str) -> None:
    """Once a process and file."""
    logging.getLogger("dowser_pl").warning(
        "%s carries no digests: it is of an earlier version or another program, and a changed bit in this checkpoint "
        "would not be noticed",
        path,
    )
