"""The config of an NVILA: a SigLIP tower, a Qwen2, what becomes one token of an image, and how pictures are cut."""

from typing import Any, ClassVar

from transformers import PreTrainedConfig, Qwen2Config, SiglipVisionConfig

from dowser_pl.errors import DowserError
from dowser_pl.models.nvila.published import own_settings

__all__ = ["NVILAConfig"]


class NVILAConfig(PreTrainedConfig):
    """Config of NVILA, read from any of the three layouts that are published.

    Args:
        text_config: of Qwen2, whose `tie_word_embeddings` is that of the whole model.
        vision_config: of SigLIP.
        image_token_id: number of `<image>`; it may be beyond the vocabulary of Qwen2, as its embedding is not used.
        video_token_id: number of `<vila/video>`, likewise.
        downsample: patches in a row and in a column that become one token, 2 or 3.
        vision_feature_layer: which hidden states of the tower are projected, counted from the last.
        vision_feature_select_strategy: `full`, as SigLIP has no token beside its patches.
        image_aspect_ratio: `dynamic`, pictures are cut into tiles, or `resize`, they are stretched to one.
        min_tiles: fewest tiles of a picture.
        max_tiles: most tiles of a picture.
        tie_word_embeddings: what `text_config` says, whatever is given.

    Raises:
        DowserError: another `downsample`.
    """

    model_type = "nvila"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": Qwen2Config, "vision_config": SiglipVisionConfig}

    text_config: Any = None
    vision_config: Any = None
    image_token_id: int = 151649
    video_token_id: int = 151650
    downsample: int = 3
    vision_feature_layer: int = -2
    vision_feature_select_strategy: str = "full"
    image_aspect_ratio: str | None = "dynamic"
    min_tiles: int = 1
    max_tiles: int = 12
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Make configs of the two parts."""
        for name in ("model_type", "auto_map"):  # of NVIDIA's folder: nvila_lite, and code that is not needed
            kwargs.pop(name, None)
        for name, kind in self.sub_configs.items():
            given = getattr(self, name)
            setattr(self, name, given if isinstance(given, kind) else kind(**given or {}))
        if self.downsample not in (2, 3):
            raise DowserError(f"got downsample={self.downsample!r} of an NVILA, expected 2 or 3")
        self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        super().__post_init__(**kwargs)

    @property
    def most_image_tokens(self) -> int:
        """Tokens of the largest picture, with what ends each tile among its embeddings and in the text."""
        side = self.vision_config.image_size // self.vision_config.patch_size
        of_tile = (-(-side // self.downsample)) ** 2 + 1
        if self.image_aspect_ratio != "dynamic":
            return of_tile
        tiles = self.max_tiles + 1 if self.max_tiles > 1 else 1  # the whole picture comes last
        return tiles * (of_tile + 1)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Read config.json, whichever layout it is of.

        Raises:
            DowserError: another model, or one of this family that is not built here, named by what it has.
        """
        found, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return own_settings(pretrained_model_name_or_path, found, kwargs), rest
