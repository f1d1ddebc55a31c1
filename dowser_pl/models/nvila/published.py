"""What the published folders of NVILA say of themselves, as settings of `NVILAConfig`; what is not built is refused.

VILA keeps a model in three folders, `llm`, `vision_tower` and `mm_projector`, each with a config of its own, which
counts, and a copy of all three in config.json of the root (github.com/NVlabs/VILA at b760c34, `llava/model/utils/`
and `llava_arch.py`). NVIDIA's own conversion for transformers is a single folder, whose config.json has two parts and
leaves the projector to its `model_type`: `nvila_lite` folds 3 x 3 patches (`sglang/srt/models/nvila_lite.py`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from dowser_pl.errors import DowserError

__all__ = ["DOWNSAMPLE", "HUB", "MEDIA", "is_nvila", "media_ids", "own_settings"]

MEDIA = ("<vila/sentinel>", "<image>", "<vila/video>")
"""The tokens of media, in the order in which VILA gives them numbers where its tokenizer lacks them."""

HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision")
"""What tells transformers where in the hub or its cache to look."""

DOWNSAMPLE = {"mlp_downsample": 2, "mlp_downsample_2x2_fix": 2, "mlp_downsample_3x3_fix": 3}
"""Projectors of VILA that are built here -> patches in a row and column that become one token."""

_TYPES = ("nvila", "nvila_lite", "vila")
_KEPT = ("image_aspect_ratio", "min_tiles", "max_tiles", "chat_template")
_PARTS = {"llm_cfg": ("llm", "qwen2"), "vision_tower_cfg": ("vision_tower", "siglip_vision_model")}
_LITE = "Fix: take an NVILA-Lite model"


def is_nvila(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of this family, or of a VILA that is read or refused as one of it."""
    return "llm_cfg" in config or config.get("model_type") in _TYPES


def own_settings(path: Any, found: dict[str, Any], hub: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an `NVILAConfig`, from what config.json of any layout says.

    Args:
        path: folder or hub id that it was read from.
        found: config.json.
        hub: among others, how transformers was told to look in the hub.

    Returns:
        New settings.

    Raises:
        DowserError: it is none of this family, or one that is not built here.
    """
    where = {name: hub[name] for name in HUB if name in hub}
    if "llm_cfg" in found:
        return _of_vila(path, found, where)
    if found.get("model_type") == "nvila_lite":
        return {"downsample": 3} | found | {"model_type": "nvila"}
    if "downsample" not in found:
        kind = found.get("model_type")
        what = {"nvila": ", which folds several scales of a picture (dynamic_s2)", "vila": ", without llm_cfg"}
        raise DowserError(
            f"got config.json of a model of type {kind!r} in {path}{what.get(str(kind), '')}, expected one of type "
            f"nvila_lite, or a folder of VILA. {_LITE}"
        )
    return found


def _of_vila(path: Any, found: dict[str, Any], where: dict[str, Any]) -> dict[str, Any]:
    _refuse_scales(path, found)
    parts = {key: _part(path, found, key, where) for key in (*_PARTS, "mm_projector_cfg")}
    for key, (folder, expected) in _PARTS.items():
        if (got := parts[key].get("model_type", expected)) != expected:
            raise DowserError(f"got model_type {got!r} of {folder} in {path}, expected {expected}. {_LITE}")
    kind = parts["mm_projector_cfg"].get("mm_projector_type")
    if kind not in DOWNSAMPLE:
        raise DowserError(
            f"got mm_projector_type {kind!r} in config.json of {path}, expected one of {list(DOWNSAMPLE)}. {_LITE}"
        )
    if (got := found.get("mm_vision_select_feature") or "cls_patch") != "cls_patch":
        raise DowserError(f"got mm_vision_select_feature {got!r} in config.json of {path}, expected cls_patch. {_LITE}")
    _, image, video = media_ids(path, where)
    return {name: found[name] for name in _KEPT if name in found} | {
        "model_type": "nvila",
        "text_config": parts["llm_cfg"],
        "vision_config": parts["vision_tower_cfg"],
        "downsample": DOWNSAMPLE[kind],
        "vision_feature_layer": found.get("mm_vision_select_layer") or -2,
        "image_token_id": image,
        "video_token_id": video,
        "dtype": (found.get("model_dtype") or parts["llm_cfg"].get("torch_dtype") or "").removeprefix("torch.") or None,
    }


def _refuse_scales(path: Any, found: Mapping[str, Any]) -> None:
    """What VILA has beside NVILA-Lite: several scales of a picture, and a look at parts of it."""
    for name in ("dynamic_s2", "s2", "ps3"):
        if found.get(name):
            raise DowserError(f"got {name} {found[name]!r} in config.json of {path}, expected none of it. {_LITE}")
    if (ratio := found.get("image_aspect_ratio")) not in ("dynamic", "resize", None):
        raise DowserError(
            f"got image_aspect_ratio {ratio!r} in config.json of {path}, expected dynamic or resize: pictures are cut "
            f"into tiles or stretched to one here. {_LITE}"
        )


def _part(path: Any, found: Mapping[str, Any], key: str, where: dict[str, Any]) -> dict[str, Any]:
    """The config of one of the three folders; where it has none, what the root says of it."""
    own = _read(path, f"{key.removesuffix('_cfg')}/config.json", where)
    if own is not None:
        return own
    told = found.get(key)
    if not isinstance(told, dict):
        raise DowserError(
            f"got {path} without {key.removesuffix('_cfg')}/config.json and with {key} {told!r} in its config.json, "
            "expected all three folders of VILA. Fix: fetch the whole model"
        )
    return dict(told)


def media_ids(path: Any, where: dict[str, Any]) -> list[int]:
    """Numbers of `MEDIA`: those of the tokenizer, and where it lacks one the next, as VILA adds it when it loads.

    Raises:
        DowserError: there is no tokenizer.
    """
    told = (_read(path, "llm/tokenizer_config.json", where) or {}).get("added_tokens_decoder") or {}
    known = {each["content"]: int(number) for number, each in told.items()}
    if not known:  # a file of megabytes
        told = (_read(path, "llm/tokenizer.json", where) or {}).get("added_tokens", [])
        known = {each["content"]: each["id"] for each in told}
    known = known or _read(path, "llm/added_tokens.json", where) or {}
    if not known:
        raise DowserError(
            f"got {path} without the tokens that its tokenizer sets apart, expected llm/tokenizer.json or "
            "llm/added_tokens.json. Fix: fetch the whole model"
        )
    for token in MEDIA:
        known.setdefault(token, max(known.values()) + 1)
    return [known[token] for token in MEDIA]


def _read(path: Any, name: str, where: dict[str, Any]) -> dict[str, Any] | None:
    file = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **where)
    if file is None:
        return None
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise DowserError(f"{name} of {path} holds a {type(content).__name__}, expected an object. Fix: copy it again")
    return content
