"""Whether a folder must be converted for patches, which hold values in the dtype that their run trained in, and back.

A folder converted to a dtype that holds every number it had comes back byte for byte: the numbers of the shards by
converting them again; how a file was laid out does not, and is kept.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dowser_pl.errors import DowserError
from dowser_pl.patches.applied import Applied, Widening, file_digest
from dowser_pl.patches.conversion import fits, write_under
from dowser_pl.patches.model_folder import described_in, find_shards, find_slots, resolve
from dowser_pl.patches.patch import Patch
from dowser_pl.patches.safetensors_file import CASTABLE, CODES, FLOATING, Slot, dtype_name, read_header

__all__ = ["check_narrowable", "describe_widening", "dtype_to_cast", "holds", "is_lossless", "narrow"]


# dtype -> those whose every number it holds, so that these come back from it bit for bit
_HOLDS = {
    "F16": {"F16"},
    "BF16": {"BF16"},
    "F32": {"F16", "BF16", "F32"},
    "F64": {"F16", "BF16", "F32", "F64"},
}


def holds(code: str, other: str) -> bool:
    """Whether a floating dtype holds every number of another one."""
    return other in _HOLDS[code]


def is_lossless(slots: Mapping[str, Slot], dtype: torch.dtype) -> bool:
    """Whether a floating dtype holds every number that the floating tensors of a folder could hold."""
    return {slot.code for slot in slots.values()} & CASTABLE <= _HOLDS[CODES[dtype]]


def dtype_to_cast(
    base: Path, patches: Sequence[Patch], slots: Mapping[str, Slot], applied: Sequence[Applied], also_lossy: bool
) -> torch.dtype | None:
    """The dtype to which all floating tensors of a folder are converted before patches are applied.

    Args:
        base: the folder.
        patches: to be applied.
        slots: name -> where its tensors lie.
        applied: the patches that it has.
        also_lossy: a person asked for the conversion.

    Returns:
        None to leave the folder as it is, also where only a lossy conversion would help and nobody asked for one.

    Raises:
        DowserError: if a conversion was asked for that the patches do not agree on, or that the folder cannot have.
    """
    names = {entry["dtype"] for patch in patches for entry in patch.head["tensors"].values()}
    dtypes = [dtype for dtype in FLOATING if dtype_name(dtype) in names]
    if not also_lossy:
        wanted = dtypes[0] if len(dtypes) == 1 and not applied else None
        fits = wanted is not None and is_lossless(slots, wanted) and _differs(base, patches, slots, CODES[wanted])
        return wanted if fits else None
    if len(dtypes) != 1:
        got = ", ".join(sorted(dtype_name(dtype) for dtype in dtypes)) or "none"
        raise DowserError(
            f"--cast needs patches of one floating dtype, got {got}; load the base with the dtypes that the run used, "
            "save it with save_pretrained and name that folder"
        )
    dtype = dtypes[0]
    if {slot.code for slot in slots.values()} & CASTABLE <= {CODES[dtype]}:
        return None
    if applied:
        raise DowserError(f"{base} has patches, which --cast would make irremovable; cast its base, then apply all")
    return dtype


def _differs(base: Path, patches: Sequence[Patch], slots: Mapping[str, Slot], code: str) -> bool:
    """Whether a tensor that the patches change has another floating dtype in the folder than in them."""
    targets = (slots[name] for patch in patches for name in resolve(patch, slots, base).values())
    return any(slot.code in CASTABLE and slot.code != code for slot in targets)


def describe_widening(base: Path, widened: Path) -> Widening:
    """What brings a converted folder back; reads every shard of the base once.

    Args:
        base: the folder before.
        widened: its converted copy, before any patch.
    """
    before = {dtype_name(slot.dtype) for slot in find_slots(base).values() if slot.code in CASTABLE}
    shards = _shards(base)
    described = _described(widened)
    contents = {name: read_header(base / name)[0].decode() for name in shards}
    contents |= {name: (base / name).read_bytes().decode() for name in described}
    return Widening(
        ", ".join(sorted(before)),
        contents,
        {name: file_digest(base / name) for name in contents},
        {name: file_digest(widened / name) for name in described},
    )


def check_narrowable(folder: Path, widening: Widening) -> None:
    """Refuse a folder whose files are not those that were converted.

    Raises:
        DowserError: naming the first one.
    """
    described = set(_described(folder))
    odd = sorted(set(widening.contents) ^ {*_shards(folder), *described} or set(widening.written) ^ described)
    if odd:
        raise DowserError(_changed(folder, odd[0]))
    for name, content in widening.contents.items():
        if name in widening.written:
            same = file_digest(folder / name) == widening.written[name]
        else:
            same = fits(folder / name, content.encode())
        if not same:
            raise DowserError(_changed(folder, name))


def narrow(folder: Path, widening: Widening, called: Path) -> None:
    """Convert a folder that is ours back, in place, once all of its patches are off.

    Args:
        folder: a copy of one that `check_narrowable` let pass.
        widening: what it was.
        called: the name under which a person knows it.

    Raises:
        DowserError: if a file does not come out as it was, or was not what it was converted to (also where the base
            itself held a NaN, whose bits a conversion need not keep); the folder is half converted then.
    """
    for name, content in widening.contents.items():
        path, exact = folder / name, True
        if name in widening.written:
            path.write_bytes(content.encode())
        else:
            narrowed = path.with_name(f".{path.name}.narrowed")
            exact = write_under(path, narrowed, content.encode())
            narrowed.replace(path)
        if not exact or file_digest(path) != widening.digests[name]:
            raise DowserError(_changed(called, name))


def _shards(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_shards(folder)]


def _described(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in described_in(folder)]


def _changed(folder: Path, name: str) -> str:
    return (
        f"{name} in {folder} was changed after it was converted for the patch, expected it as `patch apply` left it. "
        "Nothing was written; undo that change, or apply the patch to its base again and go on from there"
    )
