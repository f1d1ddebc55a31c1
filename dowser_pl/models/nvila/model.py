"""NVILA: a SigLIP tower, a projector that folds patches, and a Qwen2, put together as transformers has LLaVA.

All but the projector, the embedding and the files is transformers' LLaVA. Names of tensors in files are those of
NVIDIA's single folder, `vision_tower.`, `mm_projector.` and `llm.`; VILA's three folders are read with the name of each
in front, which makes the same names of them.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    GenerationConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_utils import load_state_dict
from transformers.models.llava.modeling_llava import LlavaModel, LlavaPreTrainedModel

from dowser_pl.models.layouts import parts_of, text_folder
from dowser_pl.models.nvila.config import NVILAConfig
from dowser_pl.models.nvila.projector import NVILAProjector
from dowser_pl.models.nvila.published import HUB, MEDIA
from dowser_pl.models.weight_files import weight_files

__all__ = ["NVILAForConditionalGeneration", "NVILAModel"]


class Words(nn.Embedding):
    """The embeddings of Qwen2. The token of an image, which may have no row here, is zeros until its features come."""

    image_token_id: int

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) numbers to (B, T, H)."""
        is_image = tokens == self.image_token_id
        embedded: Tensor = super().forward(tokens.masked_fill(is_image, 0))
        return embedded.masked_fill(is_image[..., None], 0.0)


class NVILAModel(LlavaModel):
    """Tower, projector and text decoder, without a head; takes and returns what transformers' `LlavaModel` does.

    Args:
        config: an `NVILAConfig`.
    """

    config_class = NVILAConfig

    def __init__(self, config: NVILAConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector: nn.Module = NVILAProjector(config)  # type: ignore[assignment]
        self.language_model = AutoModel.from_config(config.text_config)
        words = self.language_model.embed_tokens
        words.__class__, words.image_token_id = Words, config.image_token_id
        self.post_init()


class NVILAForConditionalGeneration(LlavaForConditionalGeneration):
    """NVILA with its head; takes and returns what transformers' `LlavaForConditionalGeneration` does.

    `pixel_values` are the tiles of all rows, (tiles, 3, side, side); each stands in `input_ids` as so many image tokens
    as the projector makes of it, ceil(32/3)**2 = 121 in NVILA-Lite.

    Args:
        config: an `NVILAConfig`.
    """

    config_class = NVILAConfig
    tokens_without_rows = MEDIA
    """Tokens that may be beyond the rows of the embedding, by their text."""

    def __init__(self, config: NVILAConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = NVILAModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load from any of the three layouts.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            args: as those of any model of transformers.
            kwargs: likewise.

        Raises:
            DowserError: a model of this family that is not built here, or files that are missing.
        """
        path = pretrained_model_name_or_path
        where = {name: kwargs[name] for name in HUB if name in kwargs}
        config = kwargs.pop("config", None)
        if not isinstance(config, NVILAConfig):
            config = NVILAConfig.from_pretrained(path, **where)
        folder = Path(path)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(str(path), allow_patterns=["*.json", "*.jinja", "*.safetensors", "*.txt"], **where)
            )
        parts = parts_of(folder)
        if list(parts) == [""]:
            return super().from_pretrained(path, *args, config=config, **kwargs)
        if "generation_config" not in kwargs and (text_folder(folder) / "generation_config.json").is_file():
            kwargs["generation_config"] = GenerationConfig.from_pretrained(text_folder(folder))
        state: dict[str, Tensor] = {}
        for prefix, part in parts.items():
            for file in weight_files(f"{path}/{part.name}", part):
                state |= {prefix + name: tensor for name, tensor in load_state_dict(str(file)).items()}
        loaded = super().from_pretrained(None, *args, config=config, state_dict=state, **kwargs)
        model: PreTrainedModel = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config.name_or_path = model.name_or_path = str(path)
        return loaded


AutoConfig.register(NVILAConfig.model_type, NVILAConfig)
CONFIG_MAPPING.register("nvila_lite", NVILAConfig)  # that of NVIDIA's folders, which is read as ours
AutoModelForImageTextToText.register(NVILAConfig, NVILAForConditionalGeneration)
register_checkpoint_conversion_mapping(
    NVILAConfig.model_type,
    [
        WeightRenaming(r"^vision_tower\.vision_model\.", "model.vision_tower."),
        WeightRenaming(r"^mm_projector\.", "model.multi_modal_projector."),
        WeightRenaming(r"^llm\.model\.", "model.language_model."),
        WeightRenaming(r"^llm\.lm_head\.", "lm_head."),
    ],
)
