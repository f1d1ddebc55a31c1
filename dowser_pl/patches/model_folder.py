"""The weights of a folder that ``save_pretrained`` wrote: which tensor lies where, and a copy of everything."""

import json
import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch

from dowser_pl.nearest import nearest_names
from dowser_pl.patches.conversion import rewrite
from dowser_pl.patches.patch import Patch
from dowser_pl.patches.tensor_file import FLOATING, Slot, dtype_name, read_slots

__all__ = ["CONFIG", "INDEX", "copy_model", "find_shards", "find_slots", "folder_size", "resolve"]

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def find_slots(folder: Path) -> dict[str, Slot]:
    """Name -> where it lies, over all shards of a model.

    Raises:
        ValueError: if the folder has no whole safetensors weights.
    """
    slots: dict[str, Slot] = {}
    for shard in find_shards(folder):
        for name, slot in read_slots(shard).items():
            if name in slots:
                raise ValueError(f"{name} lies in {slots[name].file} and in {shard}, expected it once; save it again")
            slots[name] = slot
    return slots


def resolve(patch: Patch, names: Collection[str], place: object) -> dict[str, str]:
    """Name in a patch -> name in a place, which may use the names of the loaded model instead.

    Args:
        patch: an opened patch.
        names: of the tensors that are there.
        place: what they are in, for the message.

    Raises:
        ValueError: if a tensor is not there, or two are the same one.
    """
    found: dict[str, str] = {}
    for name in patch.names:
        runtime = patch.head["tensors"][name]["runtime"]
        target = next((candidate for candidate in (name, runtime) if candidate in names), None)
        if target is None:
            also = f" (in the loaded model: {runtime})" if runtime else ""
            raise ValueError(
                f"{patch.path} changes {name}{also}, which {place} does not have{nearest_names(name, names)}. A patch "
                "fits the model it was made from, saved under the same names; name that model"
            )
        found[name] = target
    if len(set(found.values())) < len(found):
        raise ValueError(
            f"two tensors of {patch.path} are the same one in {place}; the patch is damaged, make it again"
        )
    return found


def folder_size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in _files(folder))


def copy_model(source: Path, destination: Path, dtype: torch.dtype | None = None) -> None:
    """Copy every file byte by byte; with a dtype, all floating tensors are converted on the way.

    Links are followed: the cache of the hub consists of them.

    Args:
        source: a model folder.
        destination: a folder that does not exist.
        dtype: of the copy; None = as it is.
    """
    shards = set(find_shards(source)) if dtype is not None else set()
    for path in _files(source):
        target = destination / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if dtype is not None and path in shards:
            rewrite(path, target, dtype)
        else:
            shutil.copyfile(path, target)
    if dtype is not None:
        _describe_dtype(destination, dtype)


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a model.

    Raises:
        ValueError: if there are none, or one is missing.
    """
    if (folder / SINGLE).is_file():  # transformers looks in this order
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return [_shard(folder, name) for name in sorted(set(_read_index(folder)["weight_map"].values()))]
    pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if pickled:
        raise ValueError(
            f"{folder} holds its weights as {pickled[0]}, expected safetensors; convert it once with "
            "from_pretrained(...) and save_pretrained(...), and name the new folder"
        )
    raise ValueError(f"{folder} holds neither {SINGLE} nor {INDEX}; name a folder that save_pretrained wrote")


def _shard(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise ValueError(f"{folder} lacks {name}, which {INDEX} names; copy or download it again")
    return folder / name


def _read_index(folder: Path) -> dict[str, Any]:
    index = _read_json(folder / INDEX)
    if not isinstance(index.get("weight_map"), dict):
        raise ValueError(f"{folder / INDEX} has no weight_map; copy or download it again")
    return index


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); copy or download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; copy or download it again")
    return content


def _files(folder: Path) -> Iterable[Path]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names))


def _describe_dtype(folder: Path, dtype: torch.dtype) -> None:
    """What the files beside the weights say of their dtype and size."""
    if (folder / INDEX).is_file():
        index = _read_index(folder)
        index["metadata"] = (index.get("metadata") or {}) | {
            "total_size": sum(slot.nbytes for slot in find_slots(folder).values())
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    if (folder / CONFIG).is_file():
        config = _with_dtype(_read_json(folder / CONFIG), dtype_name(dtype))
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _with_dtype(settings: Any, name: str) -> Any:
    """The settings with every floating ``dtype``, also those of the parts (text_config ...), replaced."""
    if not isinstance(settings, dict):
        return settings
    floating = {dtype_name(dtype) for dtype in FLOATING}
    return {
        key: name
        if key in ("dtype", "torch_dtype") and isinstance(value, str) and value in floating
        else _with_dtype(value, name)
        for key, value in settings.items()
    }
