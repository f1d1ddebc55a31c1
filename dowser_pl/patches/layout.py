"""An NVILA in the other of its published layouts: the same tensors and settings in other files and under other names.

`hf` is a single folder, as NVIDIA converted it for transformers; `original` is VILA's, with `llm`, `vision_tower` and
`mm_projector` in folders of their own. No tensor is changed by it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dowser_pl.errors import DowserError
from dowser_pl.models.layouts import VILA_PARTS, parts_of
from dowser_pl.models.nvila.published import is_nvila
from dowser_pl.models.nvila.written import parts_settings, single_settings
from dowser_pl.patches.conversion import new_header
from dowser_pl.patches.json_text import read_object
from dowser_pl.patches.model_folder import CONFIG, SINGLE, beside_weights
from dowser_pl.patches.stored import Shard

__all__ = ["Layout", "arranged", "beside_as", "is_other"]

Layout = Literal["hf", "original"]

_SEEN = "preprocessor_config.json"
_OWN = "processor_config.json"
# What of a single folder belongs to the language model; the image processor is the tower's.
_SAID = (
    "added_tokens.json",
    "additional_chat_templates",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


def is_other(base: Path, layout: Layout | None) -> bool:
    """Whether a folder must be rearranged for a layout; None asks for that which it has.

    Raises:
        DowserError: it is no NVILA, which alone has two, or its files are not those of a published one.
    """
    if layout is None:
        return False
    config = read_object(base / CONFIG)
    if not is_nvila(config):
        raise DowserError(
            f"got the layout {layout!r} for a model of type {config.get('model_type')!r} in {base}, expected an NVILA: "
            "others have one layout. Fix: leave it out"
        )
    if layout == ("hf" if list(parts_of(base)) == [""] else "original"):
        return False
    if layout == "original" and not (base / _SEEN).is_file():
        raise DowserError(
            f"got {base} without {_SEEN}, expected that of SigLIP, which the layout 'original' has in vision_tower. "
            "Fix: copy it from the published model"
        )
    return True


def arranged(shards: Sequence[Shard], layout: Layout) -> list[Shard]:
    """The same tensors in the files of a layout: of each part those that the given files have of it.

    Args:
        shards: of the folder as it is.
        layout: the other one.
    """
    found = []
    for prefix in ("",) if layout == "hf" else tuple(f"{part}." for part in VILA_PARTS):
        pieces = [{name: each for name, each in shard.tensors.items() if name.startswith(prefix)} for shard in shards]
        pieces = [piece for piece in pieces if piece]
        for number, piece in enumerate(pieces, start=1):
            kinds = {name.removeprefix(prefix): (t.code, t.shape, t.nbytes) for name, t in piece.items()}
            file = SINGLE if len(pieces) == 1 else f"model-{number:05d}-of-{len(pieces):05d}.safetensors"
            place = f"{prefix.removesuffix('.')}/" if prefix else ""
            found.append(Shard(place + file, prefix, piece, new_header(kinds, {"format": "pt"})))
    return found


def beside_as(base: Path, layout: Layout, apart_from: Path) -> dict[str, Path | str]:
    """What lies beside the weights in a layout: name -> file to copy, or new text.

    Code that came with a model is left out, because a new config.json does not name it.

    Args:
        base: folder in the other layout.
        layout: of the new folder.
        apart_from: the new folder.
    """
    files: dict[str, Path | str] = {}
    for path in beside_weights(base, apart_from=apart_from):
        name = path.relative_to(base).as_posix()
        first, _, rest = name.partition("/")
        if first in VILA_PARTS:  # those of the root count where there are two
            files.setdefault(rest, path)
        elif layout == "hf":
            files[name] = path
        else:
            place = "llm/" if first in _SAID else "vision_tower/" if first == _SEEN else ""
            files[place + name] = path
    files = {name: path for name, path in files.items() if name not in (CONFIG, _OWN) and not name.endswith(".py")}
    configs = {"": single_settings(base)} if layout == "hf" else parts_settings(base)
    for place, settings in configs.items():
        files[f"{place}/{CONFIG}" if place else CONFIG] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    return files
