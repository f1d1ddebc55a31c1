"""What a checkpoint's folder looks like: two halves that refer to each other, and the share that a process holds."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dowser_pl.distributed import collectives
from dowser_pl.distributed.collectives import all_reduce_counts
from dowser_pl.distributed.tensors import is_sharded, local_rows, to_local
from dowser_pl.errors import DowserError

__all__ = [
    "FORMAT",
    "PARTS",
    "PLAIN",
    "TENSORS",
    "Reader",
    "Share",
    "extents",
    "is_folder",
    "note",
    "noted",
    "share_of",
    "shares_of",
]


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
    """What `note` was given, if this is one."""
    if isinstance(value, dict) and value.keys() == {_NOTE, "columns"}:
        return value[_NOTE], value["columns"]
    return None


class Reader(FileSystemReader):
    """Reads tensors of a folder, which may come from anyone: nothing in it is run.

    Attributes:
        tensors: name -> shape, type and parts of each.

    Raises:
        DowserError: if a file is missing or too short, or the description of the tensors is none.
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
        raise DowserError(
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
                raise DowserError(
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


@dataclass(frozen=True, eq=False)
class Share:
    """Rows of a tensor that follow each other; entries, where it has one dimension.

    Attributes:
        here: (n, ...) what this process holds; all of it where the tensor is not sharded.
        first: number of the first row that is here.
        shape: of the whole.
        columns: how many bits a row has, where rows are bits of a mask, padded to bytes; None = the tensor is no mask.
    """

    here: Tensor
    first: int
    shape: tuple[int, ...]
    columns: int | None = None

    @property
    def offsets(self) -> torch.Size:
        """The place in the whole at which the share begins, in each dimension."""
        return torch.Size((self.first, *[0] * (len(self.shape) - 1))[: len(self.shape)])

    @property
    def is_to_be_written(self) -> bool:
        """Whether anything is here; of a tensor without entries all processes have the same."""
        return self.here.numel() > 0 or 0 in self.shape


def share_of(tensor: Tensor) -> Share:
    """What this process holds of a weight or a buffer."""
    first = local_rows(tensor).start if is_sharded(tensor) else 0
    return Share(to_local(tensor.detach()), first, tuple(tensor.shape))


def shares_of(tensors: Mapping[str, Tensor]) -> dict[str, Share]:
    """What this process holds of each tensor; of two names that are one tensor, one share."""
    found = {id(tensor): share_of(tensor) for tensor in tensors.values()}
    return {name: found[id(tensor)] for name, tensor in tensors.items()}


def extents(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Where parts of so many rows begin in their wholes, and the rows of these; all processes must call it.

    Args:
        lengths: rows of each part that is here; the parts of a whole lie on the processes in order.
    """
    counts = torch.zeros(collectives.world_size(), len(lengths), dtype=torch.int64)
    counts[collectives.rank()] = torch.tensor(lengths, dtype=torch.int64)
    counts = torch.tensor(all_reduce_counts(counts.flatten().tolist()), dtype=torch.int64).view_as(counts)
    firsts, totals = counts[: collectives.rank()].sum(dim=0), counts.sum(dim=0)
    return list(zip(firsts.tolist(), totals.tolist(), strict=True))
