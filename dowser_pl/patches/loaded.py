"""A patch and loaded models: put on in place, taken off again without the base, and made of a base and a tuned one."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from dowser_pl import __version__
from dowser_pl.errors import DowserError, nearest_names
from dowser_pl.masking.base_model import Change
from dowser_pl.patches.diff import change_between
from dowser_pl.patches.patch import Patch, exchange, save_patch, tensor_digest
from dowser_pl.patches.safetensors_file import as_bits, dtype_name

__all__ = ["Undo", "apply_to_model", "save_difference"]


class Undo:
    """Takes a patch off a loaded model; holds the base values of the patched entries only.

    Args:
        tensors: name in the loaded model -> its tensor.
        changes: name -> base values of the entries that the patch changed.
    """

    def __init__(self, tensors: Mapping[str, Tensor], changes: Mapping[str, Change]) -> None:
        self._tensors = dict(tensors)
        self._changes = dict(changes)

    @contextmanager
    def base_in_place(self) -> Iterator[None]:
        """Put the base values back meanwhile; afterwards the model is what it was, bit for bit.

        Raises:
            DowserError: if the model was changed since the patch was applied.
        """
        tuned: dict[str, Change] = {}
        try:
            for name, change in self._changes.items():
                tuned[name] = replace(change, values=exchange(self._tensors[name], change))
            self._check(tuned)
            yield
        finally:
            for name, change in tuned.items():
                exchange(self._tensors[name], change)

    def remove(self) -> None:
        """Put the base values back, in place and bit for bit.

        Raises:
            DowserError: if that was done already, or the model was changed since; the patched entries hold their base
                values then, and the message names the first tensor in which others do not.
        """
        if not self._changes:
            raise DowserError("this patch is off the model already; apply it again first")
        changes, self._changes = self._changes, {}
        for name, change in changes.items():
            exchange(self._tensors[name], change)
        self._check(changes)

    def _check(self, changes: Mapping[str, Change]) -> None:
        for name, change in changes.items():
            if tensor_digest(self._tensors[name]) != change.base_sha256:
                raise DowserError(
                    f"{name} was changed after the patch was applied, also where the patch does not reach; load the "
                    "base model again"
                )


def apply_to_model(model: nn.Module, patch: Patch | str | Path) -> Undo:
    """Write the tuned values into a loaded model, in place and bit for bit; all tensors of the patch or none.

    Args:
        model: the base of the patch, from `from_pretrained` in the dtype it was tuned in; on any device.
        patch: its file, or an opened one, which need not stay open.

    Returns:
        What takes it off again.

    Raises:
        DowserError: if a tensor is not in the model, is shared with another one, or is not that of the base; nothing
            is written then. Or if there is no such file, or it is damaged.
    """
    if not isinstance(patch, Patch):
        with Patch.open(patch) as opened:
            return apply_to_model(model, opened)
    tensors = _tensors(model)
    targets = _targets(model, patch, tensors)
    _refuse_shared(tensors, targets)
    for name, target in targets.items():
        _verify(patch, name, target, tensors[target])
    before: dict[str, Change] = {}
    try:
        for name, target in targets.items():
            change = patch.change(name)
            before[target] = replace(change, values=exchange(tensors[target], change))
    except BaseException:
        for target, change in before.items():
            exchange(tensors[target], change)
        raise
    return Undo({target: tensors[target] for target in before}, before)


def save_difference(path: str | Path, base: nn.Module, tuned: nn.Module) -> None:
    """Write what makes a tuned model of its base as a patch: every entry whose bits differ.

    Args:
        path: of the file.
        base: as `from_pretrained` gave it.
        tuned: of the same class, in the same dtype; whatever trained it.

    Raises:
        DowserError: if the models do not hold the same tensors, nothing differs, or one that does is not stored as one
            tensor in the files of this model family.
        OSError: if the disk is full.
    """
    before, after = base.state_dict(), tuned.state_dict()
    odd = sorted(set(before) ^ set(after)) or [name for name in before if _look(before[name]) != _look(after[name])]
    if odd:
        got, wanted = (_look(each[odd[0]]) if odd[0] in each else "missing" for each in (after, before))
        raise DowserError(
            f"{odd[0]} is {got} in the tuned model and {wanted} in the base, expected the same model tuned. "
            "Fix: load both in one dtype"
        )
    names = {name: saved for saved, name in _by_saved_name(base).items()} or {name: name for name in before}
    there = {tensor.data_ptr() for name, tensor in before.items() if name in names}
    changes: dict[str, Change] = {}
    for name, tensor in before.items():
        old, new = tensor.detach().cpu(), after[name].detach().cpu()
        mask = as_bits(old) != as_bits(new)
        if not bool(mask.any()) or (name not in names and tensor.data_ptr() in there):  # it is saved by another name
            continue
        if name not in names:
            raise DowserError(
                f"{name} differs and is not stored as one tensor in the files of this {type(base).__name__}, so no "
                "patch can name it; save_pretrained the tuned model instead"
            )
        changes[names[name]] = replace(change_between(old, new, mask), runtime=name)
    if not changes:
        raise DowserError("no entry of the tuned model differs from its base, expected some; name the tuned model last")
    head = {"base": {"model": str(getattr(base, "name_or_path", "")) or None}, "method": {"name": "difference"}}
    save_patch(path, changes, head | {"created_by": f"dowser_pl {__version__}"})


def _look(tensor: Tensor) -> str:
    return f"{dtype_name(tensor.dtype)} of shape {tuple(tensor.shape)}"


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under all of its names."""
    return {**dict(model.named_buffers(remove_duplicate=False)), **dict(model.named_parameters(remove_duplicate=False))}


def _targets(model: nn.Module, patch: Patch, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name in the patch -> name in the model: the one the patch was made with, else by what the model is saved as."""
    found = {name: patch.head["tensors"][name]["runtime"] for name in patch.names}
    if not set(found.values()) <= set(tensors):
        by_saved_name = _by_saved_name(model)
        for name, runtime in found.items():
            candidates = (runtime, by_saved_name.get(name), name)
            target = next((candidate for candidate in candidates if candidate in tensors), None)
            if target is None:
                raise DowserError(
                    f"{patch.path} changes {name}, which is no single tensor of this {type(model).__name__}"
                    f"{nearest_names(name, by_saved_name)}. Apply the patch to the folder of its base (`patch apply`) "
                    "and load that"
                )
            found[name] = target
    if len(set(found.values())) < len(found):
        raise DowserError(
            f"two tensors of {patch.path} are the same one in the model; the patch is damaged, make it again"
        )
    return found


def _by_saved_name(model: nn.Module) -> dict[str, str]:
    if not hasattr(model, "save_pretrained"):
        return {}
    from dowser_pl.models.names import saved_names  # noqa: PLC0415 - loads transformers; patches of `fit` do without

    return {saved: name for name, saved in saved_names(model).items()}  # type: ignore[arg-type]


def _refuse_shared(tensors: Mapping[str, Tensor], targets: Mapping[str, str]) -> None:
    names = defaultdict(list)
    for name, tensor in tensors.items():
        names[id(tensor)].append(name)
    for target in targets.values():
        shared = names[id(tensors[target])]
        if len(shared) > 1:
            raise DowserError(
                f"{' and '.join(shared)} are one tied tensor, expected one that is used in one place only: a patch "
                "of it would change both; tune the model without it"
            )


def _verify(patch: Patch, name: str, target: str, tensor: Tensor) -> None:
    change = patch.change(name)
    if tensor.dtype != change.values.dtype or tuple(tensor.shape) != change.shape:
        raise DowserError(
            f"{target} is {dtype_name(tensor.dtype)} of shape {tuple(tensor.shape)} in the model and "
            f"{dtype_name(change.values.dtype)} of shape {change.shape} in {patch.path}; load the base model with "
            f"dtype={dtype_name(change.values.dtype)}"
        )
    digest = tensor_digest(tensor)
    if digest != change.base_sha256:
        raise DowserError(
            f"{target} has digest {digest[:12]} in the model, expected {change.base_sha256[:12]}: it is not the base "
            f"of {patch.path}, or is tuned or patched already. Nothing was written; load the base model "
            f"({patch.head['base']['model'] or 'not recorded'}), or stack patches in a folder with `patch apply`"
        )
