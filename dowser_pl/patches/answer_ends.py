"""The tokens that end an answer, in the generation config of a folder."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dowser_pl.patches.json_text import edit, read_object, with_value
from dowser_pl.patches.model_folder import CONFIG

__all__ = ["GENERATION", "add_ends", "ends_added"]

GENERATION = "generation_config.json"
_ENDS = "eos_token_id"


def add_ends(folder: Path, generation: Mapping[str, Any]) -> None:
    """Make a model stop where a tuned one does as well; nothing is written where it does.

    Args:
        folder: of the model.
        generation: the tokens of the tuned model, ``eos_token_id`` among them, as a generation config has them; of
            a folder without such a file they become one.
    """
    path, present = folder / GENERATION, _ends(folder)
    missing = [token for token in _listed(generation.get(_ENDS)) if token not in present]
    if not missing:
        return
    if not path.is_file():
        path.write_text(json.dumps(dict(generation), indent=2) + "\n", encoding="utf-8")
    together = [*present, *missing]
    edit(path, lambda text: with_value(text, _ENDS, together if len(together) > 1 else together[0]))


def ends_added(base: Path, tuned: Iterable[Path]) -> dict[str, Any]:
    """The tokens of tuned models, as for :func:`add_ends`; empty if they all stop where their base does."""
    found: dict[str, Any] = {}
    for folder in tuned:
        missing = [token for token in _ends(folder) if token not in _ends(base)]
        if missing:
            own = read_object(folder / GENERATION) if (folder / GENERATION).is_file() else {}
            tokens = {name: value for name, value in own.items() if name.endswith("_token_id")}
            found = tokens | found | {_ENDS: [*dict.fromkeys([*_listed(found.get(_ENDS)), *_ends(folder)])]}
    return found


def _ends(folder: Path) -> list[int]:
    """Where a model stops: by its generation config, or if it has none, by its config."""
    if (folder / GENERATION).is_file():
        return _listed(read_object(folder / GENERATION).get(_ENDS))
    config = read_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return _listed(config.get(_ENDS)) or _listed((config.get("text_config") or {}).get(_ENDS))


def _listed(ends: Any) -> list[int]:
    return [] if ends is None else list(ends) if isinstance(ends, Iterable) else [ends]
