"""What a checkpoint's folder looks like, and how its two halves refer to each other."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

__all__ = ["FORMAT", "PARTS", "PLAIN", "TENSORS", "Reader", "is_folder", "note", "noted"]

PLAIN = "meta.pt"
TENSORS = ".metadata"  # PyTorch's name
FORMAT = {"dowser_pl_folder": 1}
PARTS = "digests_of_parts"  # tensor -> its shape, and first row -> digest of each part that a process wrote
_NOTE = "in_folder"

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}


def is_folder(path: str | Path) -> bool:
    """Whether this is a checkpoint's folder, be it damaged."""
    return any((Path(path) / name).is_file() for name in (PLAIN, TENSORS))


def note(key: str, columns: int | None) -> dict[str, Any]:
    """Plain data in the place of a tensor of the folder."""
    return {_NOTE: key, "columns": columns}


def noted(value: Any) -> tuple[str, int | None] | None:
    """What :func:`note` was given, if this is one."""
    if isinstance(value, dict) and value.keys() == {_NOTE, "columns"}:
        return value[_NOTE], value["columns"]
    return None


class Reader(FileSystemReader):
    """Reads tensors of a folder, which may come from anyone: nothing in it is run.

    Attributes:
        tensors: name -> shape, type and parts of each.

    Raises:
        ValueError: if a file is missing or too short, or the description of the tensors is none.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        metadata: Any = self.read_metadata()
        self.tensors: dict[str, TensorStorageMetadata] = metadata.state_dict_metadata
        self.set_up_storage_reader(metadata, is_coordinator=True)
        self._check_files()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - PyTorch's signature
        """The description of the tensors."""
        try:
            with (self.folder / TENSORS).open("rb") as file:
                found = _Plain(file).load()
            if all(isinstance(each, TensorStorageMetadata) for each in found.state_dict_metadata.values()):
                _touch(found)
                return found
            odd = "other things than tensors"
        except Exception as error:  # noqa: BLE001 - a pickle of changed bytes can end in any
            odd = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{self.folder} is not a whole checkpoint: got no readable {TENSORS} in it ({odd}), expected the folder as "
            "`fit` wrote it. Copy it again with all its files, hidden ones too, or give another checkpoint"
        )

    def _check_files(self) -> None:
        needed: dict[str, int] = {}
        for part in self.storage_data.values():
            name = Path(part.relative_path).name
            needed[name] = max(needed.get(name, 0), part.offset + part.length)
        for name, size in sorted(needed.items()):
            file = self.folder / name
            found = file.stat().st_size if file.is_file() else None
            if found is None or found < size:
                raise ValueError(
                    f"{self.folder} is not a whole checkpoint: got {'no file' if found is None else f'{found:,} bytes'}"
                    f" of {name}, expected {size:,} bytes. Copy the folder again with all its files, or give another "
                    "checkpoint"
                )


def _touch(metadata: Any) -> None:
    """Fail here if something that will be asked for is not there; a pickle names attributes in its bytes."""
    for each in metadata.state_dict_metadata.values():
        _ = each.properties.dtype, each.size, [(*part.offsets, *part.sizes) for part in each.chunks]
    for where in metadata.storage_data.values():
        _ = Path(where.relative_path), where.offset + where.length, where.transform_descriptors


class _Plain(pickle.Unpickler):
    """Builds what describes tensors, and refuses all else that a pickle can do."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()) or (module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong in it")
