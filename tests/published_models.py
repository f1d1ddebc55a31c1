"""The shapes of published models, and how many weights their files hold.

Values are those of the published config.json; one that is not here is the default of its class in transformers. A wrong
width, depth or vocabulary would not give the number of weights that the hub states. That is not known of four: Molmo2
and GLM-4.1V are the defaults of classes that were written for these very models, LLaVA-Phi-3 has Phi-3-mini as a Llama,
Idefics3 the Llama 3.1 8B with three more tokens and the tower of SmolVLM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from tests.tiny_nvila import REAL_TEXT, REAL_VISION, shapes_of

Shapes = dict[str, Any]

CLIP_L = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
CLIP_L |= {"num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768}
SO400M = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
SO400M |= {"num_attention_heads": 16, "patch_size": 14, "vision_use_head": False}


def text(kind: str, hidden: int, mlp: int, layers: int, heads: int, groups: int, words: int, **more: Any) -> Shapes:
    """Shapes of a text decoder, by the names that most of them have."""
    sizes = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers, "vocab_size": words}
    return {"model_type": kind, **sizes, "num_attention_heads": heads, "num_key_value_heads": groups, **more}


QWEN2_7B = (3584, 18944, 28, 28, 4)
LONG = {"max_position_embeddings": 32768}
MROPE = LONG | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}
QWEN2_5_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584}
QWEN3_VISION = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 4096}
A3B = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}


@dataclass(frozen=True)
class Published:
    """A model of the hub.

    Args:
        weights: numbers in its files, as the hub says; tied ones once. None = not known here.
        kind: `model_type` of its config.json.
        shapes: the rest of it.
    """

    weights: int | None
    kind: str
    shapes: Shapes

    @property
    def config(self) -> PreTrainedConfig:
        """As `from_pretrained` would read it."""
        config = AutoConfig.for_model(self.kind, **self.shapes)
        config.dtype = "bfloat16"
        return config


def both(vision: Shapes, words: Shapes, **more: Any) -> Shapes:
    """Shapes of the two halves."""
    return {"vision_config": vision, "text_config": words, **more}


PUBLISHED = {
    "llava_1_5_7b": Published(7_063_427_072, "llava", both(CLIP_L, text("llama", 4096, 11008, 32, 32, 32, 32064))),
    "llava_phi3_mini": Published(None, "llava", both(CLIP_L, text("llama", 3072, 8192, 32, 32, 32, 32064))),
    "llava_onevision_7b": Published(
        8_030_348_832,
        "llava_onevision",
        both(SO400M | {"image_size": 384, "num_hidden_layers": 26}, text("qwen2", *QWEN2_7B, 152064, **LONG)),
    ),
    "nvila_lite_2b": Published(
        sum(math.prod(shape) for part in shapes_of(REAL_TEXT, REAL_VISION).values() for shape in part.values()),
        "nvila_lite",
        both(REAL_VISION, REAL_TEXT),
    ),
    "qwen2_vl_7b": Published(
        8_291_375_616,
        "qwen2_vl",
        both({"depth": 32, "embed_dim": 1280, "hidden_size": 3584}, text("qwen2_vl_text", *QWEN2_7B, 152064, **MROPE)),
    ),
    "qwen2_5_vl_7b": Published(
        8_292_166_656, "qwen2_5_vl", both(QWEN2_5_VISION, text("qwen2_5_vl_text", *QWEN2_7B, 152064, **MROPE))
    ),
    "qwen3_vl_8b": Published(
        8_767_123_696,
        "qwen3_vl",
        both(QWEN3_VISION, text("qwen3_vl_text", 4096, 12288, 36, 32, 8, 151936, head_dim=128)),
    ),
    "qwen3_vl_30b_a3b": Published(
        31_070_754_032,
        "qwen3_vl_moe",
        both(
            QWEN3_VISION | {"out_hidden_size": 2048},
            text("qwen3_vl_moe_text", 2048, 6144, 48, 32, 4, 151936, head_dim=128, **A3B),
        ),
    ),
    "internvl3_8b": Published(
        7_944_373_760,
        "internvl",
        both({"attention_bias": True}, text("qwen2", *QWEN2_7B, 151674, **LONG), tie_word_embeddings=False),
    ),
    "gemma_3_4b": Published(
        4_300_079_472,
        "gemma3",
        both(SO400M | {"image_size": 896}, text("gemma3_text", 2560, 10240, 34, 8, 4, 262208)),
    ),
    "paligemma_2_3b": Published(
        3_032_242_416,
        "paligemma",
        both(
            SO400M | {"image_size": 224, "projection_dim": 2304},
            text("gemma2", 2304, 9216, 26, 8, 4, 257216),
            projection_dim=2304,
        ),
    ),
    "idefics3_8b": Published(
        None,
        "idefics3",
        both(
            SO400M | {"model_type": "idefics3_vision", "image_size": 364},
            text("llama", 4096, 14336, 32, 32, 8, 128259, max_position_embeddings=131072),
            scale_factor=2,
            tie_word_embeddings=False,
        ),
    ),
    "smolvlm2_2b": Published(
        2_246_784_880,
        "smolvlm",
        both(
            SO400M | {"model_type": "smolvlm_vision", "image_size": 384},
            text("llama", 2048, 8192, 24, 32, 32, 49280, max_position_embeddings=8192),
            scale_factor=3,
            tie_word_embeddings=False,
        ),
    ),
    "mistral_small_3_1": Published(24_011_361_280, "mistral3", {"tie_word_embeddings": False}),
    "llama_3_2_vision_11b": Published(10_670_220_835, "mllama", {"vision_config": {"image_size": 560}}),
    "glm_4_1v_9b": Published(None, "glm4v", {}),
}
if "molmo2" in CONFIG_MAPPING:  # since transformers 5.20
    PUBLISHED["molmo2_8b"] = Published(None, "molmo2", {})
