"""The folder of a tuned model: that of its base, with tuned numbers in place of the old ones and nothing else changed.

`save_pretrained` writes what the installed version of transformers makes of a model, and other versions (and what is
built on them) may read that as another one: names of settings, defaults and classes change. The files of the base are
what all of them were tested with. So they stay as they are: settings, tokenizer, processor, templates and code byte by
byte, weights under the same names in the same files. Two settings follow the weights, in the base's own JSON: the dtype
where the run converted them, and the tokens that end an answer. Settings
of images that a run changed (`min_pixels`, `max_pixels`) are written into it as well.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import atomic_path
from dowser_pl.models.layouts import text_folder
from dowser_pl.models.names import as_saved
from dowser_pl.models.sources import stored_folder
from dowser_pl.patches.dtypes import holds
from dowser_pl.patches.json_text import edit, read_object, with_dtype, with_total_size, with_value
from dowser_pl.patches.layout import Layout, arranged, beside_as, is_other
from dowser_pl.patches.model_folder import CONFIG, INDEX, PATCHES, SINGLE, beside_weights, described_in
from dowser_pl.patches.safetensors_file import (
    CASTABLE,
    CODES,
    DTYPES,
    FLOATING,
    METADATA,
    as_bits,
    as_bytes,
    dtype_name,
)
from dowser_pl.patches.stored import Shard, Stored, shards_of

__all__ = ["TunedFolder", "add_ends", "ends_added", "generation_file", "rearrange", "write_image_settings"]

_ENDS = "eos_token_id"


def generation_file(folder: Path) -> Path:
    """Where a model says how it writes, if it does."""
    return text_folder(folder) / "generation_config.json"


def add_ends(folder: Path, generation: Mapping[str, Any]) -> None:
    """Make a model stop where a tuned one does as well; nothing is written where it does.

    Args:
        folder: of the model.
        generation: the tokens of the tuned model, `eos_token_id` among them, as a generation config has them; of
            a folder without such a file they become one.
    """
    path, present = generation_file(folder), _ends(folder)
    missing = [token for token in _listed(generation.get(_ENDS)) if token not in present]
    if not missing:
        return
    if not path.is_file():
        path.write_text(json.dumps(dict(generation), indent=2) + "\n", encoding="utf-8")
    together = [*present, *missing]
    edit(path, lambda text: with_value(text, _ENDS, together if len(together) > 1 else together[0]))


def ends_added(base: Path, tuned: Iterable[Path | Mapping[str, Any]]) -> dict[str, Any]:
    """The tokens of tuned models, as for `add_ends`; empty if they all stop where their base does.

    Args:
        base: folder of the model they were tuned from.
        tuned: their folders, or their tokens as the head of a patch has them.
    """
    found: dict[str, Any] = {}
    for model in tuned:
        ends = _ends(model) if isinstance(model, Path) else _listed(model.get(_ENDS))
        if any(token not in _ends(base) for token in ends):
            own = _own_tokens(model) if isinstance(model, Path) else model
            tokens = {name: value for name, value in own.items() if name.endswith("_token_id")}
            found = tokens | found | {_ENDS: [*dict.fromkeys([*_listed(found.get(_ENDS)), *ends])]}
    return found


def _own_tokens(folder: Path) -> Mapping[str, Any]:
    return read_object(path) if (path := generation_file(folder)).is_file() else {}


def _ends(folder: Path) -> list[int]:
    """Where a model stops: by its generation config, or if it has none, by its config."""
    if (path := generation_file(folder)).is_file():
        return _listed(read_object(path).get(_ENDS))
    config = read_object(path) if (path := text_folder(folder) / CONFIG).is_file() else {}
    return _listed(config.get(_ENDS)) or _listed((config.get("text_config") or {}).get(_ENDS))


def _listed(ends: Any) -> list[int]:
    return [] if ends is None else list(ends) if isinstance(ends, Iterable) else [ends]


class TunedFolder:
    """What becomes of the files of a base.

    Args:
        base: folder of the base, in which nothing is written.
        tensors: name in its files -> tuned tensor, on any device, tied ones under each of their names. What the model
            does not hold stays as the base has it. Shapes are enough until `write`, so they may lie on `meta`.
        dtype: of the tuned model; None = that of the base.
        layout: of the new folder, of those that NVILA has; None = that of the base.

    Raises:
        DowserError: if the folder is no model, or not that of these tensors, or has no other layout.
    """

    def __init__(
        self, base: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, layout: Layout | None = None
    ) -> None:
        self.base, self.tensors = base, tensors
        self._shards = shards_of(base)
        self._layout = layout if is_other(base, layout) else None
        if self._layout is not None:
            self._shards = arranged(self._shards, self._layout)
        self._stored = {name: each for shard in self._shards for name, each in shard.tensors.items()}
        self._names: dict[int, list[str]] = {}  # of every tensor, those that are in the files
        for name, tensor in tensors.items():
            self._names.setdefault(id(tensor), []).extend([name] if name in self._stored else [])
        self._check()
        self._dtype = dtype
        self._converted = dtype is not None and dtype != self._declared(dtype)
        self._codes = {name: self._code(stored) for name, stored in self._stored.items()}
        self._unchanged: dict[int, bool] = {}

    @classmethod
    def of(cls, path: str, model: Any, state: Mapping[str, Tensor], layout: Layout | None = None) -> "TunedFolder":
        """The folder of a transformers model.

        Args:
            path: of its base: a folder, or a hub id that is in the cache.
            model: tuned, without adapters beside its matrices.
            state: its state dict, put together where it is sharded over processes.
            layout: of the new folder; None = that of the base.

        Raises:
            FileNotFoundError: if the base has no folder.
            DowserError: if the folder does not hold the model.
        """
        return cls(stored_folder(path), as_saved(model, state), model.dtype, layout)

    @property
    def num_bytes(self) -> int:
        """Size of the folder, about."""
        weights = sum(stored.size_as(self._codes[name]) for name, stored in self._stored.items())
        return weights + sum(path.stat().st_size for path in beside_weights(self.base))

    def write(self, folder: Path, generation: Mapping[str, Any]) -> None:
        """Write the folder; no more than one tensor is held beside those of the model.

        Args:
            folder: is made.
            generation: tokens of the model, as for `add_ends`.
        """
        folder.mkdir(parents=True)
        for name, content in self._beside(folder).items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                target.write_text(content, encoding="utf-8")
            else:
                shutil.copyfile(content, target)
        for shard in self._shards:
            self._write_shard(shard, folder / shard.file)
        for place in {Path(shard.file).parent for shard in self._shards}:
            self._write_index(folder, place)
        if self._converted and self._dtype is not None:
            dtype = dtype_name(self._dtype)
            for path in (path for path in described_in(folder) if path.name == CONFIG):
                edit(path, lambda text: with_dtype(text, dtype))
        add_ends(folder, generation)

    def _beside(self, folder: Path) -> Mapping[str, Path | str]:
        if self._layout is not None:
            return beside_as(self.base, self._layout, apart_from=folder)
        return {path.relative_to(self.base).as_posix(): path for path in beside_weights(self.base, apart_from=folder)}

    def _write_shard(self, shard: Shard, path: Path) -> None:
        header = shard.header_with({name: self._codes[name] for name in shard.tensors})
        entries = {name: entry for name, entry in json.loads(header).items() if name != METADATA}
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
                file.write(self._content(shard.tensors[shard.prefix + name]))

    @torch.no_grad()
    def _content(self, stored: Stored) -> bytes | memoryview:
        """The bytes of one tensor.

        Where the file keeps another dtype than the model has, what did not move keeps the number of the base: the
        model has a rounded one.
        """
        tensor, code = self.tensors.get(stored.name), self._codes[stored.name]
        if tensor is None:
            return stored.raw()
        if len(self._names[id(tensor)]) > 1 and self._is_unchanged(tensor):
            return stored.raw() if code == stored.code else as_bytes(stored.read().to(DTYPES[code]))
        if CODES[tensor.dtype] == code:
            return as_bytes(tensor)
        base, tuned = stored.read(), tensor.detach().cpu()
        moved = as_bits(base.to(tuned.dtype)) != as_bits(tuned)
        return as_bytes(torch.where(moved, tuned.to(base.dtype), base))

    def _is_unchanged(self, tensor: Tensor) -> bool:
        """Whether a tied tensor is that of the base, of which the model read only one of several copies."""
        if id(tensor) not in self._unchanged:
            bits = as_bits(tensor.detach().cpu())
            copies = (self._stored[name].read().to(tensor.dtype) for name in self._names[id(tensor)])
            self._unchanged[id(tensor)] = any(torch.equal(as_bits(copy), bits) for copy in copies)
        return self._unchanged[id(tensor)]

    def _code(self, stored: Stored) -> str:
        """The dtype of a tensor in the new files: that of the base, where the model was not converted and it fits."""
        tensor = self.tensors.get(stored.name)
        if tensor is None:
            return stored.code
        code = CODES[tensor.dtype]
        both_floating = tensor.dtype in FLOATING and stored.code in CASTABLE
        return stored.code if both_floating and not self._converted and holds(stored.code, code) else code

    def _declared(self, default: torch.dtype) -> torch.dtype:
        """The dtype in which the base is loaded when nobody asks for one."""
        config = read_object(self.base / CONFIG) if (self.base / CONFIG).is_file() else {}
        named = (config.get(name) for name in ("dtype", "torch_dtype", "model_dtype"))
        said = str(next(filter(None, named), None)).removeprefix("torch.")
        known = {dtype_name(dtype): dtype for dtype in FLOATING}
        stored = (DTYPES[each.code] for name, each in self._stored.items() if each.code in CASTABLE)
        return known[said] if said in known else next(stored, default)

    def _check(self) -> None:
        """Refuse tensors that are not those of the base."""
        for name, tensor in self.tensors.items():
            places = self._names[id(tensor)]
            if not places:
                raise DowserError(f"{self.base} has no tensor {name}, which the loaded model has")
            for place in places:
                got, expected = tuple(tensor.shape), self._stored[place].shape
                if got != expected:
                    raise DowserError(f"{place} has shape {got} in the loaded model and {expected} in {self.base}")

    def _write_index(self, folder: Path, place: Path) -> None:
        """That of one part, whose files lie in `place` of the folder."""
        shards = [shard for shard in self._shards if Path(shard.file).parent == place]
        if Path(shards[0].file).name == SINGLE:
            return
        here = {name: each for shard in shards for name, each in shard.tensors.items()}
        sizes = (stored.size_as(self._codes[name]) for name, stored in here.items())
        if self._layout is None and (self.base / place / INDEX).is_file():
            shutil.copyfile(self.base / place / INDEX, folder / place / INDEX)
            if any(self._codes[name] != stored.code for name, stored in here.items()):
                edit(folder / place / INDEX, lambda text: with_total_size(text, sum(sizes)))
            return
        places = {name.removeprefix(each.prefix): Path(each.file).name for each in shards for name in each.tensors}
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": dict(sorted(places.items()))}
        (folder / place / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def rearrange(base: Path, out: Path, layout: Layout) -> None:
    """Write an NVILA in its other layout, every tensor byte for byte.

    Args:
        base: folder of the model, without patches applied to it.
        out: the new folder.
        layout: of the new folder.

    Raises:
        DowserError: it is no NVILA, has that layout or patches already, or there is something at `out`.
        OSError: if the disk is full.
    """
    if not is_other(base, layout):
        raise DowserError(f"{base} has the layout {layout!r} already, expected the other one; use it as it is")
    if (base / PATCHES).is_dir():
        raise DowserError(f"{base} has patches, which could not be taken off in another layout; rearrange its base")
    if out.exists():
        raise DowserError(f"{out} exists already and is not overwritten; name a new folder with --out")
    folder = TunedFolder(base, {}, None, layout)
    with atomic_path(out, needed_bytes=folder.num_bytes) as temporary:
        folder.write(temporary, {})


_PREPROCESSOR = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"
_PART = "image_processor"
_PIXELS = ("size", "min_pixels", "max_pixels")  # what a run may change


def write_image_settings(folder: Path, images: Any) -> None:
    """Make whoever loads a folder prepare images as a run did; nothing is written where they do already.

    Args:
        folder: of a model, in which the files of its base lie.
        images: the image processor of the run.
    """
    try:
        own = type(images).from_pretrained(str(folder)).to_dict()
    except (OSError, ValueError, TypeError):  # none lies there, or one made by code alone: nothing to be changed
        return
    now = images.to_dict()
    changed = {name: now[name] for name in _PIXELS if name in now and name in own and own[name] != now[name]}
    if not changed:
        return
    nested = _PART in read_object(folder / _PROCESSOR) if (folder / _PROCESSOR).is_file() else False
    path = folder / (_PROCESSOR if nested else _PREPROCESSOR)
    settings = read_object(path)[_PART] if nested else read_object(path)
    for name, value in _spelt_as(settings, changed).items():
        edit(path, lambda text, name=name, value=value: with_value(text, name, value, _PART if nested else None))  # type: ignore[misc]


def _spelt_as(settings: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """Numbers of pixels have two spellings, of which older versions believe `min_pixels`, where it is there."""
    edges, found = changed.get("size") or {}, dict(changed)
    pixels = {"min_pixels": edges.get("shortest_edge"), "max_pixels": edges.get("longest_edge")}
    if not pixels.keys() & settings.keys() or None in pixels.values():
        return found
    if "size" not in settings:
        found.pop("size")
    return found | pixels
