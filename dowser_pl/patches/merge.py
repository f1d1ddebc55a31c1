"""A merge of tuned models, matrix by matrix, as a new folder or as a patch of their base.

Of each model no more than one tensor is held at a time. The files are read more than once: to see what was tuned, to
decide (several times where all matrices of a model share one budget), and to merge.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import atomic_path
from dowser_pl.functional.merges import mean_of_moves
from dowser_pl.masking.base_model import Change
from dowser_pl.methods import AfterFit, Layer, Method, build_masks
from dowser_pl.patches.apply import check_free
from dowser_pl.patches.diff import change_between
from dowser_pl.patches.model_folder import copy_model, find_slots
from dowser_pl.patches.safetensors_file import FLOATING, as_bits, dtype_name, write
from dowser_pl.patches.tuned_folder import add_ends
from dowser_pl.patches.versions import Versions

__all__ = ["Group", "Merge"]


@dataclass
class Group:
    """Tensors that were treated alike: how many, their entries, and how many of these differ from the base."""

    tensors: int = 0
    entries: int = 0
    changed: int = 0

    def add(self, before: Tensor, after: Tensor) -> Tensor:
        """Count one tensor; returns the bool mask of what differs, bit by bit."""
        differs = as_bits(before) != as_bits(after)
        self.tensors += 1
        self.entries += before.numel()
        self.changed += int(differs.sum())
        return differs


class Merge:
    """A merge that was checked and can be written.

    Every tensor of two dimensions that a tuned model changed is a matrix and is merged.

    Args:
        versions: base and tuned models.
        method: decides after training, and by weights alone.
        take_others: tensors that were changed and are not merged are taken from the tuned model, of several the mean
            of those that changed it; else they stay as the base has them.
        only: patterns (`*`, `?`) of names, one of which a matrix must match to be merged; none = all.

    Attributes:
        merged: counts of what was merged, once written.
        shared: entries of matrices of which several tuned models keep a move, once written.
        others: names of what the tuned models changed besides.
        taken: counts of those that were taken, once written.
        generation: tokens that end an answer of the tuned models and not of the base, as for `add_ends`.

    Raises:
        DowserError: if nothing was tuned, or the method cannot do it.
    """

    def __init__(self, versions: Versions, method: Method, take_others: bool = True, only: Sequence[str] = ()) -> None:

        self.versions, self.take_others = versions, take_others
        self.method = _offline(method, versions)
        changed = versions.changed()
        self._matrices = [name for name in changed if versions.is_matrix(name) and _matches(name, only)]
        merged = set(self._matrices)
        self.others = [name for name in changed if name not in merged]
        self.merged, self.taken, self.shared = Group(), Group(), 0
        self.generation = versions.generation()
        if not self._matrices:
            asked = f" that matches {' or '.join(only)}" if only else ""
            also = f"; {len(self.others)} other tensors were, first {self.others[0]}" if self.others else ""
            raise DowserError(f"no matrix{asked} was tuned{also}. Expected a model tuned from {versions.base}")

    def write_folder(self, out: Path) -> None:
        """Write the merged model: a copy of the base with the changed tensors put in; whole or not at all.

        Raises:
            DowserError: if the folder is there already, or a number became infinite.
            OSError: if the disk is full.
        """
        for source in (self.versions.base, *self.versions.tuned):
            check_free(out, source)
        with atomic_path(out, needed_bytes=self.versions.num_bytes()) as folder:
            copy_model(self.versions.base, folder, self.versions.dtype)
            slots = find_slots(folder)
            for name, after, _ in self._tensors():
                write(slots[name], after)
            add_ends(folder, self.generation)

    def changes(self) -> dict[str, Change]:
        """The merged model as a patch of the base, all of which is held.

        Raises:
            DowserError: if nothing differs from the base in the end, or a number became infinite.
        """
        found = {
            name: change_between(self.versions.before(name), after, differs)
            for name, after, differs in self._tensors()
            if bool(differs.any())
        }
        if not found:
            raise DowserError("the merged model is the base, bit for bit: there is nothing to put into a patch")
        return found

    def _tensors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, merged tensor and what of it differs from the base, of every tensor to write."""
        self.merged, self.taken, self.shared = Group(), Group(), 0
        numbers = range(len(self.versions.tuned))
        before = lru_cache(maxsize=1)(self.versions.before)  # deciding and merging ask for the same one in a row
        after = lru_cache(maxsize=len(numbers))(self.versions.after)

        def layer_of(number: int) -> Callable[[str], Layer]:
            suffix = f" of tuned model {number + 1}" if number else ""  # methods that draw draw for each anew
            return lambda name: Layer(name.removesuffix(".weight") + suffix, before(name), tuned=after(number, name))

        versions = [layer_of(number) for number in numbers]
        blocks = {name: _block(name) for name in self._matrices}
        for decided in zip(*(build_masks(self.method, blocks, version) for version in versions), strict=True):
            name = decided[0][0]
            layers = [version(name) for version in versions]
            merged = self.method.merge_all(layers, [mask for _, mask in decided])
            self.shared += int((sum(mask.to(torch.int32) for _, mask in decided) > 1).sum())
            _check_finite(name, merged, before(name), *(after(number, name) for number in numbers))
            yield name, merged, self.merged.add(before(name), merged)
        for name in self.others if self.take_others else ():
            taken = self._other(name)
            yield name, taken, self.taken.add(self.versions.before(name), taken)

    def _other(self, name: str) -> Tensor:
        """The value of a tensor that is not merged: that of the models that changed it."""
        numbers = range(len(self.versions.tuned))
        before = self.versions.before(name)
        values = [self.versions.after(number, name) for number in numbers if self.versions.differs(number, name)]
        if all(torch.equal(as_bits(value), as_bits(values[0])) for value in values):
            return values[0]
        if before.dtype not in FLOATING:
            raise DowserError(
                f"{name} is {dtype_name(before.dtype)} and the tuned models changed it differently, which has no "
                "mean; keep what the base has (--others base)"
            )
        return mean_of_moves(before, values, [torch.ones_like(before, dtype=torch.bool)] * len(values))


def _offline(method: Method, versions: Versions) -> AfterFit:
    """The method, if it can be applied to finished models, and to these."""
    name, num_tuned = type(method).__name__, len(versions.tuned)
    if not isinstance(method, AfterFit):
        raise DowserError(
            f"{name} decides before or during training, expected a method that decides after it, by the tuned weights; "
            f"train with it: fit --dowser.method {name}"
        )
    missing = sorted(method.needs - {"tuned"})
    if missing:
        raise DowserError(
            f"{name} needs the {' and '.join(missing).replace('_', ' ')} of calibration data, which model folders do "
            f"not hold; train with it: fit --dowser.method {name}"
        )
    if num_tuned > 1 and type(method).merge_all is AfterFit.merge_all:
        raise DowserError(f"{name} merges one tuned model with its base, got {num_tuned}; give one, or use Ties")
    for path, made_by in zip(versions.tuned, versions.methods, strict=True):
        if method.merges and made_by not in method.merges:
            raise DowserError(
                f"{name} merges patches of {' and '.join(method.merges)}, got {path}, made by "
                f"{made_by or 'nothing that is told'}; give runs of it, or their patch.safetensors"
            )
    return method


def _matches(name: str, only: Sequence[str]) -> bool:
    return not only or any(fnmatchcase(name, pattern) for pattern in only)


def _block(name: str) -> str:
    """The layer a matrix sits in: its name up to the first number, `model.layers.3` of `model.layers.3.mlp.up`."""
    found = re.match(r"(?:[^.]+\.)*?\d+(?=\.)", name)
    return found[0] if found else ""


def _check_finite(name: str, merged: Tensor, *sources: Tensor) -> None:
    if not bool(merged.isfinite().all()) and all(bool(source.isfinite().all()) for source in sources):
        raise DowserError(
            f"{name} got numbers that {dtype_name(merged.dtype)} does not hold; lower the scale, keep more moves, or "
            "merge models saved in float32"
        )
