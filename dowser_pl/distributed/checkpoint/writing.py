"""A checkpoint written by all processes together, whole or not at all."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import (
    CheckpointException,
    ChunkStorageMetadata,
    DefaultSavePlanner,
    FileSystemWriter,
    SavePlan,
    WriteItem,
)
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItemType

from dowser_pl.distributed import collectives
from dowser_pl.distributed.checkpoint.layout import FORMAT, PARTS, PLAIN, Reader, Share, note
from dowser_pl.distributed.checkpoint.sealing import sealed
from dowser_pl.errors import FileError
from dowser_pl.files.atomic import force_to_disk, full_disk_error, is_full_disk, open_to_others, remove, rename_over
from dowser_pl.files.digests import digest

__all__ = ["write_folder"]


def write_folder(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint as a folder; all processes must call it, and see the folder it is to lie in.

    It is written to a hidden neighbour of always the same name, `.last.tmp.ckpt` for `last.ckpt`, which takes the
    final name when all are done. A kill before that leaves the old checkpoint, file or folder.

    Args:
        checkpoint: nested plain data; shares in it lie at the same places on every process, all else is that of the
            first.
        path: final name.

    Raises:
        OSError: on every process, if one cannot write: the old checkpoint is untouched.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.stem}.tmp{final.suffix}")
    shares: dict[str, Share] = {}
    plain = _parted(checkpoint, (), shares, {})
    planner = _SharePlanner()
    collectives.from_rank_zero(lambda: _begin(temporary))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without a process group, that there is one process
            dcp.save(dict(shares), storage_writer=FileSystemWriter(temporary), planner=planner)
        parts = _together(shares, collectives.all_gather_numbered(lambda: {collectives.rank(): planner.written}))
        collectives.from_rank_zero(lambda: _finish(sealed({**plain, **FORMAT, PARTS: parts}), temporary, final))
    except (CheckpointException, OSError) as error:
        if collectives.rank() == 0:
            remove(temporary)
        raise _told(error, final) from error


class _SharePlanner(DefaultSavePlanner):
    """Tells where in the whole tensors lies what this process writes.

    Attributes:
        written: (tensor, its first row here) -> digest.
    """

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.written: dict[tuple[str, int], str] = {}

    def create_local_plan(self) -> SavePlan:
        """One item for each share that has anything; equal ones of several processes are written once."""
        return SavePlan([_item(key, each) for key, each in self.state_dict.items() if each.is_to_be_written])

    def resolve_data(self, write_item: WriteItem) -> Any:
        """The tensor of an item, about to be written."""
        share = self.state_dict[write_item.index.fqn]
        here = share.here.detach().cpu()
        self.written[write_item.index.fqn, share.first] = digest(here)
        return here


def _together(
    shares: Mapping[str, Share], written: Sequence[Mapping[tuple[str, int], str]]
) -> dict[str, tuple[tuple[int, ...], dict[int, str]]]:
    """What a folder says of its tensors: shape, and first row -> digest of each part."""
    parts: dict[str, tuple[tuple[int, ...], dict[int, str]]] = {key: (each.shape, {}) for key, each in shares.items()}
    for of_process in written:
        for (key, first), value in of_process.items():
            parts[key][1][first] = value
    return parts


def _item(key: str, share: Share) -> WriteItem:
    return WriteItem(
        index=MetadataIndex(key, share.offsets),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=share.offsets, sizes=share.here.size()),
            properties=TensorProperties.create_from_tensor(share.here),
            size=torch.Size(share.shape),
        ),
    )


def _parted(value: Any, path: tuple[str, ...], shares: dict[str, Share], known: dict[int, str]) -> Any:
    """The value with notes instead of shares, which are put under their names."""
    if isinstance(value, Share):
        key = known.setdefault(id(value), ".".join(path))
        shares[key] = value
        return note(key, value.columns)
    if isinstance(value, dict):
        return {name: _parted(each, (*path, str(name)), shares, known) for name, each in value.items()}
    if isinstance(value, list):
        return [_parted(each, (*path, str(number)), shares, known) for number, each in enumerate(value)]
    return value


def _begin(temporary: Path) -> None:
    remove(temporary)  # of a run that was killed
    temporary.mkdir(parents=True)


def _finish(plain: dict[str, Any], temporary: Path, final: Path) -> None:
    try:
        Reader(temporary)
    except ValueError as error:
        raise FileError(f"not all that was written is here: {error}") from error
    try:
        torch.save(plain, temporary / PLAIN)
    except RuntimeError as error:  # its word for a disk that is full
        raise full_disk_error(final, None) if is_full_disk(error, final.parent) else FileError(str(error)) from error
    open_to_others(temporary)
    force_to_disk(temporary)
    rename_over(temporary, final, any_kind=True)


def _told(error: BaseException, final: Path) -> FileError:
    """The error of the process that failed first, to show a person."""
    failed = error.failures if isinstance(error, CheckpointException) else {0: (error, None)}
    number, (first, _) = next(iter(failed.items()))
    if not isinstance(first, Exception):  # Ctrl-C
        raise first
    if any(is_full_disk(each, final.parent) for each, _ in failed.values()):
        return full_disk_error(final, None)
    return FileError(
        f"the checkpoint {final} could not be written, expected a folder that all processes write to and see: process "
        f"{number} got {type(first).__name__}: {first}. The old one is unchanged; train again with --ckpt_path last"
    )
