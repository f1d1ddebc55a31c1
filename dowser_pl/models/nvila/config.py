"""The config of an NVILA: a SigLIP tower, a Qwen2, what becomes one token of an image, and how pictures are cut."""

from typing import Any, ClassVar

from transformers import PreTrainedConfig, Qwen2Config, SiglipVisionConfig

from dowser_pl.errors import DowserError

__all__ = ["NVILAConfig"]

_DOWNSAMPLE = {"mlp_downsample": 2, "mlp_downsample_2x2_fix": 2, "mlp_downsample_3x3_fix": 3}


class NVILAConfig(PreTrainedConfig):
    """Config of NVILA, read from any of the three layouts that are published.

    Args:
        text_config: of Qwen2.
        vision_config: of SigLIP.
        image_token_id: number of `<image>`.
        video_token_id: number of `<vila/video>`.
        downsample: patches in a row and in a column that become one token, 2 or 3.
        image_aspect_ratio: `dynamic`, pictures are cut into tiles, or `resize`, they are stretched to one.
        min_tiles: fewest tiles of a picture.
        max_tiles: most tiles of a picture.
        kwargs: as those of any config of transformers.
    """

    model_type = "nvila"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": Qwen2Config, "vision_config": SiglipVisionConfig}

    def __init__(
        self,
        text_config: dict[str, Any] | Qwen2Config | None = None,
        vision_config: dict[str, Any] | SiglipVisionConfig | None = None,
        image_token_id: int = 151649,
        video_token_id: int = 151650,
        downsample: int = 3,
        image_aspect_ratio: str | None = "dynamic",
        min_tiles: int = 1,
        max_tiles: int = 12,
        **kwargs: Any,
    ) -> None:
        self.text_config = text_config if isinstance(text_config, Qwen2Config) else Qwen2Config(**text_config or {})
        given = vision_config or {}
        self.vision_config = given if isinstance(given, SiglipVisionConfig) else SiglipVisionConfig(**given)
        self.image_token_id, self.video_token_id = image_token_id, video_token_id
        self.downsample = downsample
        self.image_aspect_ratio, self.min_tiles, self.max_tiles = image_aspect_ratio, min_tiles, max_tiles
        super().__init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Read config.json, with VILA's keys renamed."""
        found, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if "llm_cfg" in found:
            kind = (found.get("mm_projector_cfg") or {}).get("mm_projector_type")
            if kind not in _DOWNSAMPLE:
                raise DowserError(
                    f"got mm_projector_type {kind!r} in config.json of {pretrained_model_name_or_path}, expected one "
                    f"of {list(_DOWNSAMPLE)}. Fix: take an NVILA-Lite model"
                )
            kept = ("image_aspect_ratio", "min_tiles", "max_tiles", "chat_template")
            told = {"text_config": found["llm_cfg"], "vision_config": found["vision_tower_cfg"]}
            found = {name: found[name] for name in kept if name in found} | told | {"downsample": _DOWNSAMPLE[kind]}
        return {**found, "model_type": cls.model_type}, rest
