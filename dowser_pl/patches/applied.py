"""What a patched folder says of itself: `dowser_patches/applied.json` and a file per patch that takes it off.

The undo file of a patch is the patch with other values: those that stood there before. Beneath all patches lies the
base, which is what every patch was made from; it is had back, tensor by tensor, by putting in the values of the undo
files, the last patch first.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.masks import unpack
from dowser_pl.masking.base_model import Change
from dowser_pl.patches.model_folder import PATCHES, resolve
from dowser_pl.patches.patch import Patch, exchange

__all__ = ["Applied", "Beneath", "Widening", "file_digest", "read_applied", "undo_file", "write_applied"]

FORMAT = 1
_LIST = "applied.json"
_CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class Widening:
    """What a folder was before it was converted to a dtype that holds every value of the one it had.

    Attributes:
        before: the floating dtypes it had, as `float16`.
        contents: name of each rewritten file -> what cannot be had back from its numbers: the header of a shard, the
            whole text of a JSON file.
        digests: name of each rewritten file -> SHA-256 of it before the conversion.
        written: name of each rewritten JSON file -> SHA-256 of it after the conversion.
    """

    before: str
    contents: dict[str, str]
    digests: dict[str, str]
    written: dict[str, str]


@dataclass(frozen=True)
class Applied:
    """One patch of a folder.

    Attributes:
        file: name of the patch file.
        sha256: of that file.
        method: what the patch says of how it was made.
        entries: how many it wrote.
        conflicts: how many of these belong to an earlier patch of the folder too.
        conflicts_different: how many of those it gave another value.
        cast: the dtype that the folder was converted to when this patch was applied; null if it was not.
        tensors: name in the folder -> digests `before` and `after` the patch.
        widened: how to undo that conversion where it lost nothing; null if it did, or there was none.
        ends: the text of the generation config `before` tokens that end an answer were added to it (null if there
            was no such file), and its SHA-256 `after`; null if none were.
    """

    file: str
    sha256: str
    method: dict[str, Any] | None
    entries: int
    conflicts: int
    conflicts_different: int
    cast: str | None
    tensors: dict[str, dict[str, str]]
    widened: Widening | None = None
    ends: dict[str, str | None] | None = None


class Beneath:
    """The undo files of a folder, opened: what lies beneath the patches, and which entries they hold.

    Args:
        folder: a model folder.
        applied: its patches, first to last.
        names: of its tensors.
    """

    def __init__(self, folder: Path, applied: Sequence[Applied], names: Mapping[str, object]) -> None:
        self._files = ExitStack()
        self._undos: list[tuple[Patch, dict[str, str]]] = []
        try:
            for number in range(1, len(applied) + 1):
                undo = self._files.enter_context(Patch.open(undo_file(folder, number), finite=False))
                targets = resolve(undo, names, folder)
                self._undos.append((undo, {target: name for name, target in targets.items()}))
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> "Beneath":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def __bool__(self) -> bool:
        """Whether there are patches."""
        return bool(self._undos)

    def uncover(self, name: str, tensor: Tensor) -> Tensor:
        """Turn a tensor of the folder into that of the base, in place."""
        for undo, names in reversed(self._undos):
            if name in names:
                exchange(tensor, undo.change(names[name]))
        return tensor

    def held(self, name: str, change: Change) -> Tensor:
        """Which of the entries of a change belong to one of the patches; bool, shaped like `change.values`."""
        held = torch.zeros(change.shape, dtype=torch.bool)
        for undo, names in self._undos:
            if name in names:
                mask = undo.change(names[name]).mask
                held |= True if mask is None else unpack(mask, change.shape)
        return held if change.mask is None else held[unpack(change.mask, change.shape)]


def read_applied(folder: Path) -> list[Applied]:
    """The patches of a folder, first to last; none if it never had one.

    Raises:
        DowserError: if the list is damaged.
    """
    path = folder / PATCHES / _LIST
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DowserError(f"format {content['format']}, expected {FORMAT}")
        return [_parse(entry) for entry in content["patches"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DowserError(f"{path} is damaged ({error}); copy the folder again, or patch its base again") from error


def _parse(entry: dict[str, Any]) -> Applied:
    widened = entry.get("widened")
    return Applied(**entry | {"widened": None if widened is None else Widening(**widened)})


def write_applied(folder: Path, applied: Sequence[Applied]) -> None:
    """Write the list; the undo files of its patches lie beside it. Without patches the folder of both goes."""
    if not applied:
        shutil.rmtree(folder / PATCHES)
        return
    content = {"format": FORMAT, "patches": [asdict(entry) for entry in applied]}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (folder / PATCHES / _LIST).write_text(text, encoding="utf-8")


def undo_file(folder: Path, number: int) -> Path:
    """The file that takes patch `number` (from 1) off a folder."""
    return folder / PATCHES / f"{number:02d}.undo.safetensors"


def file_digest(path: Path) -> str:
    """SHA-256 of a file; 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
