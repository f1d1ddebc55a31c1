"""The weights of a folder that `save_pretrained` wrote: which tensor lies where, and a copy of it with all else.

A copy has the weights that transformers reads and no others: those in other formats, and what lies hidden (`.git`),
would be of the model before it was tuned, and whoever reads them would run another model.
"""

import os
import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch

from dowser_pl.errors import DowserError, nearest_names
from dowser_pl.models.layouts import parts_of
from dowser_pl.patches.conversion import rewrite
from dowser_pl.patches.json_text import edit, read_object, with_dtype, with_total_size
from dowser_pl.patches.patch import Patch
from dowser_pl.patches.safetensors_file import Slot, dtype_name, read_slots

__all__ = [
    "CONFIG",
    "INDEX",
    "PATCHES",
    "PICKLED",
    "SINGLE",
    "beside_weights",
    "copy_model",
    "described_in",
    "find_pickled",
    "find_shards",
    "find_slots",
    "folder_size",
    "resolve",
    "shards_in",
]

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
PATCHES = "dowser_patches"
_WEIGHTS = {".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".pt", ".pth", ".safetensors"}


def find_slots(folder: Path) -> dict[str, Slot]:
    """Name -> where it lies, over all shards of a model; where it has parts, with the name of its part in front.

    Raises:
        DowserError: if the folder has no whole safetensors weights.
    """
    slots: dict[str, Slot] = {}
    for prefix, part in parts_of(folder).items():
        for shard in shards_in(part):
            for name, slot in read_slots(shard).items():
                if (other := slots.setdefault(prefix + name, slot)) is not slot:
                    raise DowserError(f"{name} lies in {other.file} and in {shard}, expected it once; save it again")
    return slots


def resolve(patch: Patch, names: Collection[str], place: object) -> dict[str, str]:
    """Name in a patch -> name in a place, which may use the names of the loaded model instead.

    Args:
        patch: an opened patch.
        names: of the tensors that are there.
        place: what they are in, for the message.

    Raises:
        DowserError: if a tensor is not there, or two are the same one.
    """
    found: dict[str, str] = {}
    for name in patch.names:
        runtime = patch.head["tensors"][name]["runtime"]
        target = next((candidate for candidate in (name, runtime) if candidate in names), None)
        if target is None:
            also = f" (in the loaded model: {runtime})" if runtime else ""
            raise DowserError(
                f"{patch.path} changes {name}{also}, which {place} does not have{nearest_names(name, names)}. A patch "
                "fits the model it was made from, saved under the same names; name that model"
            )
        found[name] = target
    if len(set(found.values())) < len(found):
        raise DowserError(
            f"two tensors of {patch.path} are the same one in {place}; the patch is damaged, make it again"
        )
    return found


def folder_size(folder: Path, everything: bool = False) -> int:
    """Bytes of all files that `copy_model` copies."""
    return sum(path.stat().st_size for path in _files(folder, everything))


def copy_model(source: Path, destination: Path, dtype: torch.dtype | None = None, everything: bool = False) -> None:
    """Copy a model byte by byte; with a dtype, all floating tensors are converted on the way.

    Links are followed: the cache of the hub consists of them.

    Args:
        source: a model folder.
        destination: a folder that does not exist.
        dtype: of the copy; None = as it is.
        everything: also what is no part of the model: a folder that is to be replaced by its copy must lose nothing.
    """
    shards = set(find_shards(source)) if dtype is not None else set()
    for path in _files(source, everything):
        target = destination / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if dtype is not None and path in shards:
            rewrite(path, target, dtype)
        else:
            shutil.copyfile(path, target)
    if dtype is not None:
        _describe_dtype(destination, dtype)


def beside_weights(folder: Path, apart_from: Path | None = None) -> list[Path]:
    """The files of a model that hold no weights: settings, tokenizer, processor, templates, code, licence, card.

    Args:
        folder: of the model.
        apart_from: a place; a folder of the model in which it lies (`runs`) is none of the model's own.
    """
    place = None if apart_from is None else apart_from.resolve()
    others = {each for each in folder.iterdir() if place is not None and each.resolve() in place.parents}
    found = (path for path in _walk(folder) if _is_beside(path.relative_to(folder)))
    return [path for path in found if not others.intersection(path.parents)]


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a model, part by part.

    Raises:
        DowserError: if there are none, or one is missing.
    """
    return [shard for part in parts_of(folder).values() for shard in shards_in(part)]


def shards_in(folder: Path) -> list[Path]:
    """The safetensors files of one part of a model, or of a model without parts.

    Raises:
        DowserError: if there are none, or one is missing.
    """
    if (folder / SINGLE).is_file():  # transformers looks in this order
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return [_shard(folder, name) for name in sorted(set(_read_index(folder)["weight_map"].values()))]
    pickled = find_pickled(folder)
    if pickled:
        raise DowserError(
            f"{folder} holds its weights as {pickled[0].name}, expected safetensors; convert it once with "
            "from_pretrained(...) and save_pretrained(...), and name the new folder"
        )
    raise DowserError(f"{folder} holds neither {SINGLE} nor {INDEX}; name a folder that save_pretrained wrote")


def described_in(folder: Path) -> list[Path]:
    """The files of a model that tell the dtype or the size of its weights."""
    places = dict.fromkeys([folder, *parts_of(folder).values()])
    return [place / name for place in places for name in (CONFIG, INDEX) if (place / name).is_file()]


def find_pickled(folder: Path) -> list[Path]:
    """The files of a part of a model whose weights are pickled; none if it has safetensors, which count first."""
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        return []
    single = folder / PICKLED
    return [single] if single.is_file() else sorted(folder.glob("pytorch_model-*.bin"))


def _shard(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise DowserError(f"{folder} lacks {name}, which {INDEX} names; copy or download it again")
    return folder / name


def _read_index(folder: Path) -> dict[str, Any]:
    index = read_object(folder / INDEX)
    if not isinstance(index.get("weight_map"), dict):
        raise DowserError(f"{folder / INDEX} has no weight_map; copy or download it again")
    return index


def _files(folder: Path, everything: bool) -> Iterable[Path]:
    if everything:
        yield from _walk(folder)
        return
    shards = find_shards(folder)
    indexes = {shard.parent / INDEX for shard in shards if shard.name != SINGLE}
    kept = {*shards, *beside_weights(folder), *indexes}
    yield from (path for path in _walk(folder) if path in kept or folder / PATCHES in path.parents)


def _walk(folder: Path) -> Iterable[Path]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names))


def _is_beside(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts) or path.parts[0] == PATCHES
    return not hidden and path.suffix not in _WEIGHTS and not re.search(r"\.index\b.*\.json$", path.name)


def _describe_dtype(folder: Path, dtype: torch.dtype) -> None:
    """What the files beside the weights say of their dtype and size."""
    for path in described_in(folder):
        if path.name == CONFIG:
            edit(path, lambda text: with_dtype(text, dtype_name(dtype)))
        else:
            size = sum(slot.nbytes for shard in shards_in(path.parent) for slot in read_slots(shard).values())
            edit(path, lambda text, size=size: with_total_size(text, size))  # type: ignore[misc]
