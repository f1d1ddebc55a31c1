"""Patches put on a model folder and taken off it, tensor by tensor: what no patch touches keeps its bytes.

Everything is checked before anything is written, and the new folder appears whole or not at all. Patches stack: each
was made from the base, so each is checked against what lies beneath the earlier ones; where two hold the same entry,
the later one wins. The last one can be taken off again: every byte is then as it was before it.
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import atomic_path
from dowser_pl.files.sealed import reseal
from dowser_pl.patches.applied import Applied, Beneath, file_digest, read_applied, undo_file, write_applied
from dowser_pl.patches.conversion import cast, converted_size
from dowser_pl.patches.dtypes import check_narrowable, describe_widening, dtype_to_cast, is_lossless, narrow
from dowser_pl.patches.layout import Layout, is_other
from dowser_pl.patches.model_folder import copy_model, find_slots, folder_size, resolve
from dowser_pl.patches.patch import KIND, Patch, exchange, tensor_digest
from dowser_pl.patches.safetensors_file import FLOATING, Slot, as_bits, dtype_name, read, read_slots, write
from dowser_pl.patches.tuned_folder import TunedFolder, add_ends, generation_file

__all__ = ["apply_patches", "check_base", "check_free", "remove_patch"]


def apply_patches(
    base: Path, patches: Sequence[Path], out: Path, cast_to_patch: bool = False, layout: Layout | None = None
) -> list[Applied]:
    """Write a copy of a model folder with patches applied, first to last.

    Args:
        base: a folder that `save_pretrained` wrote, or one that this function wrote.
        patches: patch files.
        out: the new folder.
        cast_to_patch: convert every floating tensor of the new folder to the dtype of the patches even where that
            loses digits. A conversion that loses none is made without asking, and undone when its patch comes off.
        layout: of the new folder, of those that NVILA has; None = that of the base.

    Returns:
        What was done, one entry for each of `patches`.

    Raises:
        DowserError: if a patch does not belong to the base, is there already, is damaged, or the folder is no model
            or has no such layout.
        OSError: if the disk is full.
    """
    check_free(out, base)
    applied, slots = read_applied(base), find_slots(base)
    rearranged = TunedFolder(base, {}, None, layout) if is_other(base, layout) else None
    digests = _digests(patches, applied)
    with ExitStack() as files:
        opened = [files.enter_context(Patch.open(path)) for path in patches]
        beneath = files.enter_context(Beneath(base, applied, slots))
        dtype = dtype_to_cast(base, opened, slots, applied, cast_to_patch)
        if rearranged is not None and (applied or dtype is not None):
            why = "has patches, which" if applied else "must be converted to the dtype of the patch, which afterwards"
            raise DowserError(
                f"{base} {why} could not be undone in another layout; write its base in that layout first "
                "(`patch export --layout`), then apply the patches to that"
            )
        for patch in opened:
            check_base(patch, base, slots, beneath, dtype)
    grows = sum(converted_size(slot, dtype) - slot.nbytes for slot in slots.values())
    needed = folder_size(base) + grows + sum(path.stat().st_size for path in patches)
    with atomic_path(out, needed_bytes=needed) as folder:
        if rearranged is not None:
            rearranged.write(folder, {})
        else:
            copy_model(base, folder, dtype)
        widened = describe_widening(base, folder) if dtype is not None and is_lossless(slots, dtype) else None
        slots = find_slots(folder)
        for path, digest in zip(patches, digests, strict=True):
            done = _apply(path, digest, folder, slots, applied)
            if dtype is not None and not applied:
                done = replace(done, cast=dtype_name(dtype), widened=widened)
            applied.append(replace(done, ends=_add_ends(path, folder)))
        write_applied(folder, applied)
    return applied[len(applied) - len(patches) :]


def check_free(out: Path, source: Path) -> None:
    """Refuse to write to a folder that is there already, unless it is empty, or that is inside the one to copy.

    Raises:
        DowserError: saying what to do.
    """
    if source.resolve() in out.resolve().parents:
        raise DowserError(f"{out} is inside {source}, which is copied; name a folder elsewhere with --out")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DowserError(f"{out} exists already and is not overwritten; name a new folder with --out")


def _digests(patches: Sequence[Path], applied: Sequence[Applied]) -> list[str]:
    """SHA-256 of each patch file.

    Raises:
        DowserError: if one is there already, or given twice.
    """
    known = {entry.sha256: f"applied to this folder already (as {entry.file})" for entry in applied}
    digests = []
    for path in patches:
        with Patch.open(path):  # says what is wrong with a path that is no patch
            digest = file_digest(path)
        if digest in known:
            raise DowserError(f"{path} is {known[digest]}, expected each patch once; leave it out")
        known[digest] = f"the same patch as {path}"
        digests.append(digest)
    return digests


def _add_ends(path: Path, folder: Path) -> dict[str, str | None] | None:
    """Make a folder that is ours stop where the model of a patch does; what is needed to undo that."""
    settings = generation_file(folder)
    before = settings.read_bytes().decode() if settings.is_file() else None
    with Patch.open(path) as patch:
        add_ends(folder, patch.head["base"].get("generation") or {})
    after = settings.read_bytes().decode() if settings.is_file() else None
    return None if after == before else {"before": before, "after": file_digest(settings)}


def check_base(patch: Patch, folder: Path, slots: dict[str, Slot], beneath: Beneath, dtype: torch.dtype | None) -> None:
    """Every tensor of the patch against the base beneath the folder.

    Args:
        patch: opened.
        folder: of a model.
        slots: name -> where its tensors lie.
        beneath: the patches that it has.
        dtype: to which it is converted first; None = it stays as it is.

    Raises:
        DowserError: if the patch was made from another base.
    """
    for name, target in resolve(patch, slots, folder).items():
        change, tensor = patch.change(name), cast(read(slots[target]), dtype)
        if tensor.dtype != change.values.dtype:
            got, expected = dtype_name(tensor.dtype), dtype_name(change.values.dtype)
            if dtype is not None or not {tensor.dtype, change.values.dtype} <= FLOATING:
                advice = ""
            elif beneath:
                advice = f"take the patches of {folder} off first (`patch remove`), or "
            else:
                advice = f"add --cast to convert the new folder to {expected}, or "
            raise DowserError(
                f"{target} is {got} in {folder} and {expected} in {patch.path}; {advice}name a base in {expected}"
            )
        if tuple(tensor.shape) != change.shape:
            raise DowserError(
                f"{target} has shape {tuple(tensor.shape)} in {folder} and {change.shape} in {patch.path}; name the "
                "base that the patch was made from"
            )
        digest = tensor_digest(beneath.uncover(target, tensor))
        if digest != change.base_sha256:
            made_from = patch.head["base"]["model"]
            raise DowserError(
                f"{patch.path} was made from another base than {folder}: {target} has digest {digest[:12]}, expected "
                f"{change.base_sha256[:12]}. Nothing was written; name the base it was made from"
                + (f" ({made_from})" if made_from else "")
            )


def _apply(path: Path, sha256: str, folder: Path, slots: dict[str, Slot], applied: Sequence[Applied]) -> Applied:
    """Write one patch into a folder that is ours, and beside it what stood there before."""
    undo = undo_file(folder, len(applied) + 1)
    undo.parent.mkdir(exist_ok=True)
    shutil.copyfile(path, undo)
    undo_slots = read_slots(undo)
    entries = conflicts = different = 0
    tensors, restoring = {}, {}
    with Patch.open(path) as patch, Beneath(folder, applied, slots) as earlier:
        for name, target in resolve(patch, slots, folder).items():
            change, tensor = patch.change(name), read(slots[target])
            before = tensor_digest(tensor)
            old = exchange(tensor, change)
            write(slots[target], tensor)
            write(undo_slots[f"{name}.values"], old)
            restoring[f"{name}.values"] = tensor_digest(old)
            tensors[target] = {"before": before, "after": tensor_digest(tensor)}
            held = earlier.held(target, change)
            entries += change.values.numel()
            conflicts += int(held.sum())
            different += int((held & (as_bits(old) != as_bits(change.values))).sum())
        reseal(undo, KIND, restoring)
        return Applied(path.name, sha256, patch.head["method"], entries, conflicts, different, None, tensors)


def remove_patch(folder: Path, out: Path | None = None, patch: Path | None = None) -> Applied:
    """Take the last patch off a model folder; every byte is then as it was before.

    Also the dtype, if the patch came with a conversion that lost nothing; one that lost digits stays.

    Args:
        folder: one that `apply_patches` wrote.
        out: the new folder; None = replace `folder`.
        patch: the patch that is meant; it must be the last one.

    Returns:
        The patch that was taken off.

    Raises:
        DowserError: if there is no patch, another one must come off first, or a tensor was changed since.
        OSError: if the disk is full.
    """
    if out is not None:
        check_free(out, folder)
    applied = read_applied(folder)
    if not applied:
        raise DowserError(f"{folder} has no patch to remove; name a folder that `patch apply` wrote")
    if patch is not None:
        _check_last(folder, applied, patch)
    last = applied[-1]
    _each_restored(folder, len(applied), last, write_back=False)
    if last.widened is not None:
        check_narrowable(folder, last.widened)
    settings = generation_file(folder)
    if last.ends is not None and not (settings.is_file() and file_digest(settings) == last.ends["after"]):
        raise DowserError(
            f"{settings.name} in {folder} was changed after the patch was applied. Nothing was written; undo that "
            "change, or apply the patch to its base again and go on from there"
        )
    with atomic_path(out or folder, needed_bytes=folder_size(folder, everything=True)) as new:
        copy_model(folder, new, everything=True)
        _each_restored(new, len(applied), last, write_back=True)
        if last.widened is not None:
            narrow(new, last.widened, folder)
        if last.ends is not None:
            _write_or_remove(generation_file(new), last.ends["before"])
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
        raise DowserError(f"{patch} is not applied to {folder}, which has, first to last: {listed}; name the last one")
    if wanted != known[-1]:
        later = [entry.file for entry in applied[known.index(wanted) + 1 :]]
        raise DowserError(f"patches come off last to first: before {patch}, remove {', '.join(reversed(later))}")


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
        raise DowserError(
            f"{name} in {folder} was changed after the patch was applied: it has digest {got[:12]}, expected "
            f"{digest[:12]}. Nothing was written; apply the patch to its base again and go on from there"
        )
