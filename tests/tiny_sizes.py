"""What all small models have in common: a vocabulary of 96 words, sizes, and weights that a seed alone decides."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>", "<vision_start>", "<vision_end>"]
PAD, BOS, EOS, UNK, IMAGE, VIDEO, VISION_START, VISION_END = range(8)
WORDS = (
    "user assistant system : . , ? ! yes no a an the is are of in on and what which how many colour shape "
    "number picture this that it red green blue yellow black white orange purple circle square triangle star "
    "cross zero one two three four five six seven eight nine ten left right top bottom small big 0 1 2 3 4 5 "
    "6 7 8 9 A B C D plus minus cat dog house tree car sky night day fish bird sun moon"
)
VOCABULARY = SPECIAL_TOKENS + WORDS.split()

IMAGE_SIZE, PATCH_SIZE = 16, 8
TOKENS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
# Weights ten times the usual spread: random models then answer differently to different prompts.
TEXT = TOKENS | {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
QWEN_VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
QFORMER = {"vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
QFORMER |= {"num_attention_heads": 2, "cross_attention_frequency": 1}


def build(model_class: type[PreTrainedModel], config: object, seed: int) -> PreTrainedModel:
    """A model in eval mode whose weights depend on `seed` alone; the global random state is kept."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(config).eval()


def qwen_text(sections: list[int], **changes: object) -> dict[str, object]:
    """Text settings of Qwen-VL; `sections` splits the rotary half-dimension over time, height, width."""
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections}
    return TEXT | {"rope_parameters": rope} | changes
