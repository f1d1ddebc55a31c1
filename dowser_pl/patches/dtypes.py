"""Whether a folder must be converted for patches, which hold values in the dtype that their run trained in."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dowser_pl.patches.applied import Applied
from dowser_pl.patches.model_folder import resolve
from dowser_pl.patches.patch import Patch
from dowser_pl.patches.safetensors_file import CASTABLE, CODES, FLOATING, Slot, dtype_name

__all__ = ["dtype_to_cast", "holds", "is_lossless"]

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
        ValueError: if a conversion was asked for that the patches do not agree on, or that the folder cannot have.
    """
    names = {entry["dtype"] for patch in patches for entry in patch.head["tensors"].values()}
    dtypes = [dtype for dtype in FLOATING if dtype_name(dtype) in names]
    if not also_lossy:
        wanted = dtypes[0] if len(dtypes) == 1 and not applied else None
        fits = wanted is not None and is_lossless(slots, wanted) and _differs(base, patches, slots, CODES[wanted])
        return wanted if fits else None
    if len(dtypes) != 1:
        got = ", ".join(sorted(dtype_name(dtype) for dtype in dtypes)) or "none"
        raise ValueError(
            f"--cast needs patches of one floating dtype, got {got}; load the base with the dtypes that the run used, "
            "save it with save_pretrained and name that folder"
        )
    dtype = dtypes[0]
    if {slot.code for slot in slots.values()} & CASTABLE <= {CODES[dtype]}:
        return None
    if applied:
        raise ValueError(f"{base} has patches, which --cast would make irremovable; cast its base, then apply all")
    return dtype


def _differs(base: Path, patches: Sequence[Patch], slots: Mapping[str, Slot], code: str) -> bool:
    """Whether a tensor that the patches change has another floating dtype in the folder than in them."""
    targets = (slots[name] for patch in patches for name in resolve(patch, slots, base).values())
    return any(slot.code in CASTABLE and slot.code != code for slot in targets)
