"""A patch out of two model folders: the entries in which a tuned model differs from its base, one tensor at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.masks import num_trainable, pack
from dowser_pl.functional.selection import highest
from dowser_pl.masking.base_model import Change
from dowser_pl.patches.model_folder import find_slots
from dowser_pl.patches.patch import tensor_digest
from dowser_pl.patches.safetensors_file import Slot, as_bits, dtype_name, read

__all__ = ["Difference", "change_between", "check_same_tensors", "difference"]


@dataclass(frozen=True)
class Difference:
    """What makes the tuned model of the base.

    Attributes:
        changes: name -> entries and their tuned values, ready for `save_patch`.
        left_out: names of the tensors that differ but have no matrix shape, when only the largest entries are taken.
    """

    changes: dict[str, Change]
    left_out: tuple[str, ...]


def difference(base: Path, tuned: Path, update_ratio: float | None = None) -> Difference:
    """Entries whose bits differ: -0.0 differs from 0.0.

    A tensor that differs everywhere is taken as a whole, which is smaller than a mask of ones.

    Args:
        base: a folder that `save_pretrained` wrote.
        tuned: another one, with the same tensors.
        update_ratio: take, of every tensor with two dimensions or more, only the `round(update_ratio * entries)`
            whose values moved furthest (in float32; ties go to the lower flat index), and no other tensor;
            None = all that differ.

    Raises:
        DowserError: if the folders do not hold the same tensors, nothing differs, or a distance is not a number.
    """
    found, expected = find_slots(tuned), find_slots(base)
    check_same_tensors(base, expected, tuned, found)
    changes: dict[str, Change] = {}
    left_out = []
    for name, slot in expected.items():
        before, after = read(slot), read(found[name])
        mask = as_bits(before) != as_bits(after)
        if not bool(mask.any()):
            continue
        if update_ratio is not None:
            if before.ndim < 2:
                left_out.append(name)
                continue
            mask &= _furthest(name, before, after, num_trainable(update_ratio, mask.numel()))
        if bool(mask.any()):
            changes[name] = change_between(before, after, mask)
    if not changes:
        also = f" in matrices; {len(left_out)} smaller tensors differ" if left_out else ""
        raise DowserError(f"no entry of {tuned} differs from {base}{also}, expected some; name the tuned model second")
    return Difference(changes, tuple(left_out))


def change_between(before: Tensor, after: Tensor, mask: Tensor) -> Change:
    """What makes one tensor of another at the entries of a bool mask; as a whole if that is all of them."""
    whole = bool(mask.all())
    values = after if whole else as_bits(after)[mask].view(after.dtype)
    return Change(tuple(before.shape), None if whole else pack(mask), values, tensor_digest(before))


def _furthest(name: str, before: Tensor, after: Tensor, k: int) -> Tensor:
    """Mask of the k entries with the largest distance, ties going to the lower flat index."""
    distance = (after.float() - before.float()).abs()
    if bool(distance.isnan().any()):
        raise DowserError(f"{name} holds a distance that is not a number, expected finite weights; leave the ratio out")
    return highest(distance, k)


def check_same_tensors(
    base: Path, expected: Mapping[str, Slot], tuned: Path, found: Mapping[str, Slot], of_dtypes: str = ""
) -> None:
    """Refuse a tuned model whose tensors are not those of its base in names, shapes and dtypes.

    Args:
        base: for messages.
        expected: name -> where its tensors lie.
        tuned: for messages.
        found: name -> where those of the tuned model lie.
        of_dtypes: what else helps where dtypes differ.

    Raises:
        DowserError: naming the first that differs.
    """
    missing, left_over = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or left_over:
        here, name = (base, missing[0]) if missing else (tuned, left_over[0])
        raise DowserError(
            f"{base} and {tuned} hold different tensors ({len(missing)} are only in the first, {len(left_over)} only "
            f"in the second; {name} is only in {here}), expected the same model tuned; save both with save_pretrained"
        )
    for name, slot in expected.items():
        if (found[name].shape, found[name].code) != (slot.shape, slot.code):
            got, wanted = (f"{dtype_name(one.dtype)} of shape {one.shape}" for one in (found[name], slot))
            raise DowserError(
                f"{name} is {got} in {tuned} and {wanted} in {base}, expected the same; save both in one dtype"
                + of_dtypes * (found[name].shape == slot.shape)
            )
