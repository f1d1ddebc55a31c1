"""Settings of images that a run changed (``min_pixels``, ``max_pixels``), written into the base's own JSON."""

from pathlib import Path
from typing import Any

from dowser_pl.patches.json_text import edit, read_object, with_value

__all__ = ["write_image_settings"]

_PREPROCESSOR = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"
_PART = "image_processor"


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
    changed = {name: value for name, value in now.items() if name in own and own[name] != value}
    changed = {name: value for name, value in changed.items() if not name.startswith("_")}
    if not changed:
        return
    nested = _PART in read_object(folder / _PROCESSOR) if (folder / _PROCESSOR).is_file() else False
    path = folder / (_PROCESSOR if nested else _PREPROCESSOR)
    settings = read_object(path)[_PART] if nested else read_object(path)
    for name, value in _spelt_as(settings, changed).items():
        edit(path, lambda text, name=name, value=value: with_value(text, name, value, _PART if nested else None))  # type: ignore[misc]


def _spelt_as(settings: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """Numbers of pixels have two spellings, of which older versions believe ``min_pixels``, where it is there."""
    edges, found = changed.get("size") or {}, dict(changed)
    pixels = {"min_pixels": edges.get("shortest_edge"), "max_pixels": edges.get("longest_edge")}
    if not pixels.keys() & settings.keys() or None in pixels.values():
        return found
    if "size" not in settings:
        found.pop("size")
    return found | pixels
