"""What lies in the folder of a model: its parts, and if it is none ready to be tuned, what else, and the way out."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dowser_pl.errors import DowserError, MissingFileError

__all__ = ["VILA_PARTS", "check_folder", "check_pointers", "foreign", "foreign_config", "parts_of", "text_folder"]

_CONVERTED = "take a converted model, such as one whose name ends in -hf (llava-hf/llava-1.5-7b-hf)"
_CONVERT = f"convert it with the script of its family in transformers, or {_CONVERTED}"
_ORIGINAL_LLAVA = "a model in the layout of the original LLaVA code"
_VILA = "parts of a model in the layout of VILA or NVILA"
_WHOLE_VILA = "fetch the whole model: config.json, and the folders llm, vision_tower and mm_projector"
VILA_PARTS = ("llm", "vision_tower", "mm_projector")
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "tokenizer.json",
)
_POINTER = b"version https://git-lfs"

# What a file or folder of that name (a pattern for the whole of it) tells of what is around it: the first that fits.
_FOREIGN = (
    (r"adapter_config\.json|non_lora_trainables\.bin", "an adapter (LoRA) only",
     "merge the adapter into its base model (PeftModel.merge_and_unload), save the result, and name that folder"),
    (r"mm_projector\.bin", f"the projector of {_ORIGINAL_LLAVA}", _CONVERT),
    (r"mm_projector", _VILA, _WHOLE_VILA),
    (r"params\.json|consolidated.*\.(safetensors|pth)|tekken\.json", "weights in the layout of Mistral or Meta",
     _CONVERT),
    (r".*\.gguf", "weights in GGUF, which are for inference",
     "name the folder or hub id of the model that they were made from"),
    (r"model_index\.json", "a pipeline of diffusers", "name a model that takes images and text and writes text"),
    (r"patch\.safetensors", "a patch, which is only the difference to a base",
     "write the tuned model with `python -m dowser_pl patch apply`, and name its folder"),
    (r"refs|snapshots|blobs", "an entry of the cache of the hub", "name the folder of one commit under its snapshots"),
    (r".*\.ckpt|.*\.distcp|\.metadata|global_step\d+|zero_to_fp32\.py|meta\.pt", "checkpoints of training",
     "name the exported model, or give the checkpoint with --ckpt_path beside the base's --model.path"),
)  # fmt: skip


def foreign(names: Collection[str]) -> tuple[str, str] | None:
    """What a folder without `config.json` is and how to get a model from it; None if its names tell nothing.

    Args:
        names: of its files and folders.
    """
    for pattern, what, way in _FOREIGN:
        if any(re.fullmatch(pattern, name) for name in names):
            return what, way
    return None


def foreign_config(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """The same for what `config.json` says: original LLaVA has one that other code reads."""
    architectures = " ".join(config.get("architectures") or [])
    if "mm_vision_tower" in config or re.search(r"\bLlava\w*ForCausalLM\b", architectures):
        return _ORIGINAL_LLAVA, _CONVERT
    return None


def parts_of(folder: Path) -> dict[str, Path]:
    """What the names of tensors begin with -> the folder in which they are stored without that.

    One folder, nothing: `save_pretrained` of transformers. Three, by their names: `llm.`, `vision_tower.` and
    `mm_projector.`, as VILA keeps NVILA; with them its tensors have the names of NVILA in one folder.

    Args:
        folder: of a model.
    """
    is_whole = any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
    if is_whole or not all((folder / part).is_dir() for part in VILA_PARTS):
        return {"": folder}
    return {f"{part}.": folder / part for part in VILA_PARTS}


def text_folder(folder: Path) -> Path:
    """Where the settings of the language model lie: config.json with its end tokens, and generation_config.json."""
    return parts_of(folder).get("llm.", folder)


def check_folder(path: str, folder: Path) -> None:
    """Refuse a folder that holds no model, or one of another kind.

    Args:
        path: as the user wrote it.
        folder: that is there.

    Raises:
        FileNotFoundError: no config.json and no sign of what it is.
        DowserError: what it is, and the way out.
    """
    names = sorted(entry.name for entry in folder.iterdir())
    settings: dict[str, dict[str, Any]] = {}
    for place in dict.fromkeys([*parts_of(folder).values(), folder]):
        called = path if place == folder else str(Path(path) / place.name)
        check_pointers(called, place)
        settings = {name: _read(called, place / name) for name in _SETTINGS if (place / name).is_file()}
    whole = "config.json" in names
    if whole and "adapter_config.json" not in names:
        found = foreign_config(settings["config.json"])
    elif "report.json" in names or {"config.yaml", "checkpoints"} <= set(names):
        found = "the folder of a run", f"name the model that it exported, {Path(path) / 'model'}"
    else:
        found = foreign(names)
    if found is not None:
        raise DowserError(
            f"got {path}, which holds {found[0]}, expected a whole model written by save_pretrained of transformers. "
            f"Fix: {found[1]}."
        )
    if not whole:
        inside = ", ".join(names[:8]) or "nothing"
        models = [name for name in names if (folder / name / "config.json").is_file()]
        meant = f" {' or '.join(str(Path(path) / name) for name in models[:3])}" if models else ""
        raise MissingFileError(
            f"got the folder {path} without config.json (it holds {inside}), expected a folder written by "
            f"save_pretrained. Fix: name the folder that holds config.json{f',{meant}' if meant else ''}."
        )


def check_pointers(path: str, folder: Path) -> None:
    """Refuse a folder in which git left pointers in the place of large files.

    Raises:
        DowserError: naming them.
    """
    small = (file for file in folder.iterdir() if file.is_file() and file.stat().st_size < 1024)
    pointers = sorted(file.name for file in small if _start(file, len(_POINTER)) == _POINTER)
    if pointers:
        raise DowserError(
            f"got pointers of git-lfs in the place of {len(pointers)} files of {path} ({', '.join(pointers[:5])}), "
            f"expected the files themselves. Fix: run `git lfs pull` there, or fetch the model with `hf download`."
        )


def _read(path: str, file: Path) -> dict[str, Any]:
    """Refuse settings that cannot be read: of some, transformers would take defaults without a word."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DowserError(
            f"{file.name} of {path} is damaged ({error}), expected JSON as save_pretrained writes it. Fix: copy or "
            "download it again."
        ) from error
    if not isinstance(content, dict):
        raise DowserError(
            f"{file.name} of {path} holds a {type(content).__name__}, expected a JSON object with names and values. "
            "Fix: copy or download it again."
        )
    return content


def _start(file: Path, count: int) -> bytes:
    with file.open("rb") as opened:
        return opened.read(count)
