"""Small models with experts, which stay frozen whole: attention is tuned, and what every token passes."""

from __future__ import annotations

from collections.abc import Callable

from transformers import (
    CLIPVisionConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from tests.tiny_sizes import IMAGE, QWEN_TOKENS, QWEN_VISION, TEXT, VISION, build, qwen_text

_EXPERTS = {"moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2}


def tiny_llava_mixtral(seed: int = 0) -> PreTrainedModel:
    """LLaVA on Mixtral: the MLPs are mixtures of four experts."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=MixtralConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    return build(LlavaForConditionalGeneration, config, seed)


def tiny_qwen3_vl_moe(seed: int = 0) -> PreTrainedModel:
    """Qwen3-VL with experts held in 3-D parameters."""
    vision = QWEN_VISION | {"patch_size": 4, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    text = qwen_text([2, 1, 1], moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)
    config = Qwen3VLMoeConfig(vision_config=vision, text_config=text, **QWEN_TOKENS)
    return build(Qwen3VLMoeForConditionalGeneration, config, seed)


def tiny_qwen2_moe(seed: int = 0) -> PreTrainedModel:
    """Qwen2-MoE by itself: the first MLP is dense, beside the other experts is one that every token passes."""
    config = Qwen2MoeConfig(**TEXT, **_EXPERTS, shared_expert_intermediate_size=24, mlp_only_layers=[0])
    return build(Qwen2MoeForCausalLM, config, seed)


def tiny_llama4(seed: int = 0) -> PreTrainedModel:
    """Llama 4 by itself: the first MLP is dense, routers are linear layers, experts lie transposed and as in memory."""
    config = Llama4TextConfig(
        **TEXT, num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=48, moe_layers=[1, 2]
    )
    return build(Llama4ForCausalLM, config, seed)


def tiny_gemma4_moe(seed: int = 0) -> PreTrainedModel:
    """Gemma 4 by itself: experts and router lie in the decoder layer, beside a dense MLP."""
    text = TEXT | {"tie_word_embeddings": True, "enable_moe_block": True, "top_k_experts": 2, "num_experts": 4}
    text |= {"moe_intermediate_size": 16, "hidden_size_per_layer_input": 0, "global_head_dim": 8}
    return build(Gemma4ForCausalLM, Gemma4TextConfig(**text), seed)


EXPERT_FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3_moe": lambda: build(Qwen3MoeForCausalLM, Qwen3MoeConfig(**TEXT, **_EXPERTS), 0),
    "qwen3_vl_moe": tiny_qwen3_vl_moe,
    "llava_mixtral": tiny_llava_mixtral,
    "olmoe": lambda: build(OlmoeForCausalLM, OlmoeConfig(**TEXT, num_experts=8, num_experts_per_tok=2), 0),
    "qwen2_moe": tiny_qwen2_moe,
    "llama4": tiny_llama4,
    "gemma4_moe": tiny_gemma4_moe,
}
