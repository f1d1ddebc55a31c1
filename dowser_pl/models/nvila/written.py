"""The config.json files of a published layout of NVILA, out of those of the other one."""

import json
from pathlib import Path
from typing import Any

from dowser_pl.models.nvila.config import NVILAConfig
from dowser_pl.models.nvila.published import own_settings

__all__ = ["parts_settings", "single_settings"]

_CLASSES = {3: ("nvila_lite", "NVILALiteForConditionalGeneration"), 2: ("nvila", "NVILAForConditionalGeneration")}
_KINDS = {2: "mlp_downsample_2x2_fix", 3: "mlp_downsample_3x3_fix"}


def single_settings(base: Path) -> dict[str, Any]:
    """Make the config.json of a single folder, out of those that VILA's folders have.

    Args:
        base: a folder of VILA.
    """
    settings = _settings(base)
    kind, architecture = _CLASSES[settings["downsample"]]
    dtype = settings.pop("dtype", None)
    told = {"torch_dtype": dtype} if dtype else {}
    return {"architectures": [architecture]} | settings | told | {"model_type": kind}


def parts_settings(base: Path) -> dict[str, dict[str, Any]]:
    """Make every config.json of VILA's folders, by the name of the part, that of the root under "".

    Args:
        base: a single folder.
    """
    settings = _settings(base)
    text = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"} | settings["text_config"]
    vision = {"architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model"} | settings["vision_config"]
    dtype = settings.get("dtype") or settings.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    projector = {"architectures": ["MultimodalProjector"], "model_type": "v2l_projector"}
    projector |= {"mm_projector_type": _KINDS[settings["downsample"]]} | ({"torch_dtype": dtype} if dtype else {})
    kept = {
        name: settings.get(name, getattr(NVILAConfig, name))
        for name in ("image_aspect_ratio", "min_tiles", "max_tiles")
    }
    root = (
        kept
        | {
            "architectures": ["LlavaLlamaModel"],
            "model_type": "llava_llama",
            "llm_cfg": text,
            "vision_tower_cfg": vision,
            "mm_projector_cfg": projector,
            "hidden_size": text["hidden_size"],
            "mm_hidden_size": vision["hidden_size"],
            "mm_vision_select_layer": settings.get("vision_feature_layer", NVILAConfig.vision_feature_layer),
            "mm_vision_select_feature": "cls_patch",
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "num_video_frames": 8,
            "s2": False,
            "dynamic_s2": False,
            "chat_template": settings.get("chat_template"),
        }
        | ({"model_dtype": f"torch.{dtype}"} if dtype else {})
    )
    return {"": root, "llm": text, "vision_tower": vision, "mm_projector": projector}


def _settings(base: Path) -> dict[str, Any]:
    return own_settings(base, json.loads((base / "config.json").read_text(encoding="utf-8")), {})
