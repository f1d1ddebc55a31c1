"""A base model and tuned versions of it, as folders whose tensors are read one at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dowser_pl.patches.applied import read_applied
from dowser_pl.patches.conversion import cast, converted_size
from dowser_pl.patches.diff import check_same_tensors
from dowser_pl.patches.dtypes import is_lossless
from dowser_pl.patches.model_folder import find_slots, folder_size
from dowser_pl.patches.safetensors_file import CASTABLE, CODES, DTYPES, Slot, as_bits, read

__all__ = ["Versions"]


class Versions:
    """The folders, found to belong together.

    Args:
        base: a folder that ``save_pretrained`` wrote.
        tuned: folders of tuned models, with the same tensors.

    Attributes:
        base: as given.
        tuned: as given.
        names: of all tensors, in the order of the base.
        dtype: to which the base is converted as it is read, where the tuned models are in one that holds all its
            numbers; None = as it is.

    Raises:
        ValueError: if a folder is no model, has other tensors than the base, or the base has patches.
    """

    def __init__(self, base: Path, tuned: Sequence[Path]) -> None:
        if read_applied(base):
            raise ValueError(f"{base} has patches, expected a base; take them off first (`patch remove`)")
        self.base, self.tuned = base, list(tuned)
        self._slots, self._tuned_slots = find_slots(base), [find_slots(folder) for folder in tuned]
        self.names = list(self._slots)
        self.dtype = _wider(self._slots, self._tuned_slots[0])
        expected = _converted(self._slots, self.dtype)
        for folder, slots in zip(self.tuned, self._tuned_slots, strict=True):
            check_same_tensors(base, expected, folder, slots)

    def before(self, name: str) -> Tensor:
        """One tensor of the base, on the CPU."""
        return cast(read(self._slots[name]), self.dtype)

    def after(self, number: int, name: str) -> Tensor:
        """The same tensor of a tuned model, counted from 0."""
        return read(self._tuned_slots[number][name])

    def differs(self, number: int, name: str) -> bool:
        """Whether a tuned model has other bits in a tensor than the base."""
        return not torch.equal(as_bits(self.before(name)), as_bits(self.after(number, name)))

    def changed(self) -> list[str]:
        """Names of the tensors in which any tuned model differs; reads everything once."""
        return [name for name in self.names if any(self.differs(number, name) for number in range(len(self.tuned)))]

    def is_matrix(self, name: str) -> bool:
        """Whether a tensor has two dimensions and floating numbers to calculate with."""
        slot = self._slots[name]
        return len(slot.shape) == 2 and slot.code in CASTABLE

    def num_bytes(self) -> int:
        """Size of a copy of the base, converted."""
        grows = sum(converted_size(slot, self.dtype) - slot.nbytes for slot in self._slots.values())
        return folder_size(self.base) + grows


def _wider(base: Mapping[str, Slot], tuned: Mapping[str, Slot]) -> torch.dtype | None:
    """The one floating dtype of the tuned model, if the base has another and loses nothing in it."""
    wanted = {slot.code for slot in tuned.values()} & CASTABLE
    present = {slot.code for slot in base.values()} & CASTABLE
    if len(wanted) != 1 or wanted == present:
        return None
    dtype = DTYPES[next(iter(wanted))]
    return dtype if is_lossless(base, dtype) else None


def _converted(slots: Mapping[str, Slot], dtype: torch.dtype | None) -> dict[str, Slot]:
    if dtype is None:
        return dict(slots)
    return {n: replace(slot, code=CODES[dtype]) if slot.code in CASTABLE else slot for n, slot in slots.items()}
