"""A base and tuned versions of it, tensor by tensor: model folders, and patches of the base."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.patches.applied import Beneath, read_applied
from dowser_pl.patches.apply import check_base
from dowser_pl.patches.conversion import cast, converted_size
from dowser_pl.patches.diff import check_same_tensors
from dowser_pl.patches.dtypes import dtype_to_cast, is_lossless
from dowser_pl.patches.model_folder import find_slots, folder_size, resolve
from dowser_pl.patches.patch import Patch, exchange
from dowser_pl.patches.safetensors_file import CASTABLE, CODES, DTYPES, Slot, as_bits, read
from dowser_pl.patches.tuned_folder import ends_added

__all__ = ["Versions"]


class Versions:
    """The models, found to belong together.

    Args:
        base: a folder that `save_pretrained` wrote.
        tuned: folders of tuned models with the same tensors, and files of patches of the base.
        cast_to_tuned: convert the base to the floating dtype of the tuned models even where that loses digits.

    Attributes:
        base: as given.
        tuned: as given.
        names: of all tensors, in the order of the base.
        dtype: to which the base is converted as it is read, where the tuned models are in one that holds all its
            numbers, or a person asked for it; None = as it is.

    Raises:
        DowserError: if a folder is no model, has other tensors than the base, a patch was made from another base, or
            the base has patches.
    """

    def __init__(self, base: Path, tuned: Sequence[Path], cast_to_tuned: bool = False) -> None:
        if read_applied(base):
            raise DowserError(f"{base} has patches, expected a base; take them off first (`patch remove`)")
        self.base, self.tuned = base, list(tuned)
        self._slots = find_slots(base)
        self.names = list(self._slots)
        self._versions = [Patch.open(path) if path.is_file() else find_slots(path) for path in self.tuned]
        patches = [each for each in self._versions if isinstance(each, Patch)]
        first = self._versions[0]
        self.dtype = (
            dtype_to_cast(base, patches, self._slots, [], cast_to_tuned)
            if isinstance(first, Patch)
            else _dtype_of(first, self._slots, cast_to_tuned)
        )
        self._targets = {id(patch): _by_target(patch, self._slots, base) for patch in patches}
        expected = _converted(self._slots, self.dtype)
        for path, version in zip(self.tuned, self._versions, strict=True):
            if isinstance(version, Patch):
                check_base(version, base, self._slots, Beneath(base, [], {}), self.dtype)
            else:
                helps = not cast_to_tuned and _dtype_of(version, self._slots, True) is not None
                advice = ", or add --cast to convert the base as it is read" if helps else ""
                check_same_tensors(base, expected, path, version, advice)

    def before(self, name: str) -> Tensor:
        """One tensor of the base, on the CPU."""
        return cast(read(self._slots[name]), self.dtype)

    def after(self, number: int, name: str) -> Tensor:
        """The same tensor of a tuned model, counted from 0."""
        version = self._versions[number]
        if not isinstance(version, Patch):
            return read(version[name])
        tensor, targets = self.before(name), self._targets[id(version)]
        if name in targets:
            exchange(tensor, version.change(targets[name]))
        return tensor

    def differs(self, number: int, name: str) -> bool:
        """Whether a tuned model has other bits in a tensor than the base."""
        version = self._versions[number]
        if isinstance(version, Patch) and name not in self._targets[id(version)]:
            return False
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

    @cached_property
    def methods(self) -> list[str | None]:
        """Class names of the methods that made the tuned models; None where none is told, as of folders."""
        heads = [each.head["method"] or {} if isinstance(each, Patch) else {} for each in self._versions]
        return [head.get("method") for head in heads]

    def generation(self) -> dict[str, Any]:
        """Tokens that end an answer of the tuned models and not of the base, as for `add_ends`."""
        pairs = zip(self.tuned, self._versions, strict=True)
        return ends_added(
            self.base,
            [each.head["base"].get("generation") or {} if isinstance(each, Patch) else path for path, each in pairs],
        )


def _by_target(patch: Patch, slots: Mapping[str, Slot], base: Path) -> dict[str, str]:
    """Name in the files of the base -> name in the patch."""
    return {target: name for name, target in resolve(patch, slots, base).items()}


def _dtype_of(tuned: Mapping[str, Slot], base: Mapping[str, Slot], also_lossy: bool) -> torch.dtype | None:
    """The one floating dtype of the tuned model, if the base has another and loses nothing in it, or may."""
    wanted = {slot.code for slot in tuned.values()} & CASTABLE
    present = {slot.code for slot in base.values()} & CASTABLE
    if len(wanted) != 1 or wanted == present:
        return None
    dtype = DTYPES[next(iter(wanted))]
    return dtype if also_lossy or is_lossless(base, dtype) else None


def _converted(slots: Mapping[str, Slot], dtype: torch.dtype | None) -> dict[str, Slot]:
    if dtype is None:
        return dict(slots)
    return {n: replace(slot, code=CODES[dtype]) if slot.code in CASTABLE else slot for n, slot in slots.items()}
