"""The last patch taken off a model folder, tensor by tensor: every byte is then as it was before that patch."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dowser_pl.files.atomic import atomic_path
from dowser_pl.patches.answer_ends import GENERATION
from dowser_pl.patches.applied import Applied, file_digest, read_applied, undo_file, write_applied
from dowser_pl.patches.apply import check_free
from dowser_pl.patches.model_folder import copy_model, find_slots, folder_size, resolve
from dowser_pl.patches.patch import Patch, exchange, tensor_digest
from dowser_pl.patches.safetensors_file import read, write
from dowser_pl.patches.widening import check_narrowable, narrow

__all__ = ["remove_patch"]


def remove_patch(folder: Path, out: Path | None = None, patch: Path | None = None) -> Applied:
    """Take the last patch off a model folder; every byte is then as it was before.

    Also the dtype, if the patch came with a conversion that lost nothing; one that lost digits stays.

    Args:
        folder: one that :func:`apply_patches` wrote.
        out: the new folder; None = replace ``folder``.
        patch: the patch that is meant; it must be the last one.

    Returns:
        The patch that was taken off.

    Raises:
        ValueError: if there is no patch, another one must come off first, or a tensor was changed since.
        OSError: if the disk is full.
    """
    if out is not None:
        check_free(out, folder)
    applied = read_applied(folder)
    if not applied:
        raise ValueError(f"{folder} has no patch to remove; name a folder that `patch apply` wrote")
    if patch is not None:
        _check_last(folder, applied, patch)
    last = applied[-1]
    _each_restored(folder, len(applied), last, write_back=False)
    if last.widened is not None:
        check_narrowable(folder, last.widened)
    settings = folder / GENERATION
    if last.ends is not None and not (settings.is_file() and file_digest(settings) == last.ends["after"]):
        raise ValueError(
            f"{GENERATION} in {folder} was changed after the patch was applied. Nothing was written; undo that change, "
            "or apply the patch to its base again and go on from there"
        )
    with atomic_path(out or folder, needed_bytes=folder_size(folder, everything=True)) as new:
        copy_model(folder, new, everything=True)
        _each_restored(new, len(applied), last, write_back=True)
        if last.widened is not None:
            narrow(new, last.widened, folder)
        if last.ends is not None:
            _write_or_remove(new / GENERATION, last.ends["before"])
        undo_file(new, len(applied)).unlink()
        write_applied(new, applied[:-1])
    return last


def _write_or_remove(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text.encode())


def _check_last(folder: Path, applied: Sequence[Applied], patch: Path) -> None:
    digest = file_digest(patch) if patch.is_file() else None
    known = [entry.file if digest is None else entry.sha256 for entry in applied]
    wanted = patch.name if digest is None else digest
    if wanted not in known:
        listed = ", ".join(entry.file for entry in applied)
        raise ValueError(f"{patch} is not applied to {folder}, which has, first to last: {listed}; name the last one")
    if wanted != known[-1]:
        later = [entry.file for entry in applied[known.index(wanted) + 1 :]]
        raise ValueError(f"patches come off last to first: before {patch}, remove {', '.join(reversed(later))}")


def _each_restored(folder: Path, number: int, last: Applied, write_back: bool) -> None:
    """Read every tensor of the last patch as it was before it, checked; write it back if asked to."""
    slots = find_slots(folder)
    with Patch.open(undo_file(folder, number), finite=False) as undo:
        for name, target in resolve(undo, slots, folder).items():
            change, tensor = undo.change(name), read(slots[target])
            _expect(folder, target, tensor, last.tensors[target]["after"])
            exchange(tensor, change)
            _expect(folder, target, tensor, last.tensors[target]["before"])
            if write_back:
                write(slots[target], tensor)


def _expect(folder: Path, name: str, tensor: Tensor, digest: str) -> None:
    got = tensor_digest(tensor)
    if got != digest:
        raise ValueError(
            f"{name} in {folder} was changed after the patch was applied: it has digest {got[:12]}, expected "
            f"{digest[:12]}. Nothing was written; apply the patch to its base again and go on from there"
        )
