"""The models of the importance benchmark: LLaVA of several sizes with random weights, and a tokenizer without text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedModel,
)

__all__ = ["PRESETS", "PlainTokens", "Preset", "build_model"]

PAD, BOS, IMAGE = range(3)


@dataclass(frozen=True)
class Preset:
    """Sizes of a model and of its probing.

    Args:
        hidden_size: of the decoder.
        intermediate_size: of its MLPs.
        num_layers: decoder layers.
        num_heads: attention heads.
        vocab_size: words.
        batch_size: prompts that our pass measures at a time.
        passes: how often our pass is run, spread over the run of the naive loop.
        num_prompts: prompts of both sides.
        num_probes: probe vectors per prompt.
        num_tokens: length of every prompt.
        dtype: of the weights.
        device: where the model lies.
        naive_probes: probes of one batch that the naive loop is run for, to be extrapolated; None = all of all batches.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    batch_size: int = 8
    passes: int = 3
    num_prompts: int = 16
    num_probes: int = 8
    num_tokens: int = 64
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    naive_probes: int | None = None


PRESETS = {
    "tiny": Preset(96, 256, 3, 4, 256, num_prompts=8, num_probes=2, num_tokens=16),
    "60m": Preset(768, 2048, 7, 12, 8192),
    "250m": Preset(1024, 2816, 18, 16, 16384),
    "7b": Preset(
        *(4096, 11008, 32, 32, 32064),
        batch_size=64,
        passes=2,
        num_prompts=64,
        dtype=torch.bfloat16,
        device="cuda",
        naive_probes=3,
    ),
}


@dataclass(frozen=True)
class PlainTokens:
    """What prompts need of a tokenizer. No end of text: every prompt has full length, and the naive loop no padding."""

    vocab_size: int
    bos_token_id: int | None = BOS
    eos_token_id: int | None = None
    pad_token_id: int | None = PAD
    all_special_ids: list[int] = field(default_factory=lambda: [PAD, BOS, IMAGE])
    added_tokens_decoder: Mapping[int, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.vocab_size


def build_model(preset: Preset, seed: int) -> PreTrainedModel:
    """Random weights, drawn on the device itself, in eval mode; the vision tower is as small as can be.

    Raises:
        SystemExit: if the preset needs a GPU and there is none.
    """
    if preset.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this preset needs a CUDA device, and torch sees none; choose --preset 60m or 250m")
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=preset.vocab_size,
        hidden_size=preset.hidden_size,
        intermediate_size=preset.intermediate_size,
        num_hidden_layers=preset.num_layers,
        num_attention_heads=preset.num_heads,
        num_key_value_heads=preset.num_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    with torch.device(preset.device):
        return AutoModelForImageTextToText.from_config(config, dtype=preset.dtype).eval()
