"""The files that a model is read from: which they are, whether all are there, and whether they stay what they were."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from dowser_pl.errors import DowserError
from dowser_pl.models.layouts import foreign, parts_of

__all__ = ["WeightFiles", "weight_files"]

# In the order in which transformers looks for them.
_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def weight_files(path: str, folder: Path) -> list[Path]:
    """The files that the weights of a folder are read from, those of each of its parts.

    Args:
        path: as the user wrote it.
        folder: that is there.

    Raises:
        DowserError: there are none, two sets of them, or some that the index names are missing.
    """
    parts = parts_of(folder)
    if list(parts) == [""]:
        return _of_one(path, folder)
    return [file for part in parts.values() for file in _of_one(str(Path(path) / part.name), part)]


def _of_one(path: str, folder: Path) -> list[Path]:
    """Those that transformers reads."""
    if all((folder / name).is_file() for name in _NAMES[:2]):
        named = _shards(folder / _NAMES[1])
        if _NAMES[0] not in named:
            raise DowserError(
                f"{path} holds two sets of weights, {_NAMES[0]} and the {len(named)} files that {_NAMES[1]} names, "
                f"expected one: transformers reads the first. Fix: move the one away that is not meant."
            )
    first = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
    if first is None:
        names = sorted(entry.name for entry in folder.iterdir())
        what, way = foreign(names) or ("no weights", "copy the missing files, or fetch the model again")
        raise DowserError(
            f"{path} has no file named {_NAMES[0]} or {_NAMES[1]} (it holds {', '.join(names[:8])}): got {what}, "
            f"expected the weights that belong to its config.json. Fix: {way}."
        )
    if first.suffix != ".json":
        return _whole([first])
    shards = _shards(first)
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise DowserError(
            f"{len(missing)} of {len(shards)} files of weights of {path} are missing: {', '.join(missing[:5])}, "
            f"expected all that {first.name} names. Fix: copy or download them (`hf download` goes on where it ended)."
        )
    return _whole([folder / name for name in shards])


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DowserError(
            f"{index} is damaged ({error}), expected the index of the weights. Fix: copy it again."
        ) from error


def _whole(files: list[Path]) -> list[Path]:
    """Refuse files of torch that are none, on which it fails in its own words; safetensors looks at its own."""
    for file in files:
        with file.open("rb") as opened:
            start = opened.read(2)
        if file.suffix == ".bin" and not start.startswith((b"PK", b"\x80")):
            raise DowserError(
                f"{file} is damaged (it starts with {start!r}), expected weights that torch has saved. Fix: copy or "
                "download it again."
            )
    return files


@dataclass
class WeightFiles:
    """What a model was read from, to be looked at again while it is used: memory may still be those very files.

    Attributes:
        stamps: file -> device and number of its content, size and time of the last change, when it was read.
    """

    stamps: dict[Path, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, files: list[Path]) -> "WeightFiles":
        """Take note of these files."""
        return cls({file: _stamp(file) for file in files})

    def changed(self) -> dict[Path, bool]:
        """Files that are not what they were -> whether memory may have changed with them.

        A file that was replaced by another, or deleted, is still whole for whoever has it open; one that was written
        into is not.
        """
        now = {file: _stamp(file) for file in self.stamps}
        return {file: now[file][:2] == then[:2] for file, then in self.stamps.items() if now[file] != then}

    def forget(self) -> None:
        """What is there now is what is to stay: a change is told once."""
        self.stamps = {file: _stamp(file) for file in self.stamps}


def _stamp(file: Path) -> tuple[int, ...]:
    """Nothing of a file that is gone."""
    try:
        told = file.stat()
    except OSError:
        return ()
    return told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns
