"""Small models of more families that take pictures, built as those of `tiny_models`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MiniCPMV4_6Config,
    MiniCPMV4_6ForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Phi3Config,
    Phi4MultimodalConfig,
    Phi4MultimodalForCausalLM,
    PixtralVisionConfig,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5TextConfig,
    SiglipVisionConfig,
)

from tests.tiny_sizes import (
    IMAGE,
    QWEN_TOKENS,
    QWEN_VISION,
    TEXT,
    VIDEO,
    VISION,
    VISION_END,
    VISION_START,
    build,
    qwen_text,
)

TIED = TEXT | {"tie_word_embeddings": True}
HEADS = {name: value for name, value in TEXT.items() if name != "head_dim"}  # some divide the hidden size by heads


def tiny_qwen2_vl(seed: int = 0) -> PreTrainedModel:
    """Qwen2-VL: the hidden size of its vision tower is what the merger makes."""
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    config = Qwen2VLConfig(vision_config=vision, text_config=qwen_text([1, 1, 2]), **QWEN_TOKENS)
    return build(Qwen2VLForConditionalGeneration, config, seed)


def tiny_gemma3_vl(seed: int = 0) -> PreTrainedModel:
    """Gemma 3 with pictures: 4 x 4 patches are pooled to four image tokens."""
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**VISION | {"patch_size": 4}, vision_use_head=False),
        text_config=Gemma3TextConfig(**TIED),
        image_token_index=IMAGE,
        mm_tokens_per_image=4,
        boi_token_index=VISION_START,
        eoi_token_index=VISION_END,
    )
    return build(Gemma3ForConditionalGeneration, config, seed)


def tiny_paligemma2(seed: int = 0) -> PreTrainedModel:
    """PaliGemma 2, which is PaliGemma on Gemma 2."""
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False, projection_dim=32),
        text_config=Gemma2Config(**TIED),
        image_token_index=IMAGE,
        projection_dim=32,
    )
    return build(PaliGemmaForConditionalGeneration, config, seed)


def tiny_mistral3(seed: int = 0) -> PreTrainedModel:
    """Mistral 3, as Mistral-Small-3.1 is: a Pixtral tower, whose patches are merged two by two."""
    config = Mistral3Config(
        vision_config=PixtralVisionConfig(**VISION | {"patch_size": 4, "head_dim": 8}),
        text_config=MistralConfig(**TEXT),
        image_token_index=IMAGE,
        tie_word_embeddings=False,
    )
    return build(Mistral3ForConditionalGeneration, config, seed)


def tiny_mllama(seed: int = 0) -> PreTrainedModel:
    """Llama 3.2 Vision: the second of three layers reads the picture; text alone does not enter it."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "vision_output_dim": 32,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        "max_num_tiles": 2,
    }
    text = HEADS | {"cross_attention_layers": [1]}
    config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    model = build(MllamaForConditionalGeneration, config, seed)
    for name, weight in model.named_parameters():
        if name.endswith("_gate"):  # zero in a new model, which lets nothing through
            torch.nn.init.constant_(weight, 0.5)
    return model


def tiny_llava_phi3(seed: int = 0) -> PreTrainedModel:
    """LLaVA on Phi-3: q, k and v are one matrix, and so are gate and up."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=Phi3Config(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    return build(LlavaForConditionalGeneration, config, seed)


def tiny_molmo2(seed: int = 0) -> PreTrainedModel:
    """Molmo2: patches of two layers of the tower are pooled by attention."""
    heads = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    vision = heads | {"intermediate_size": 24, "num_hidden_layers": 2, "image_size": [16, 16], "patch_size": 4}
    adapter = heads | {"vision_feature_layer": [-1, 0], "intermediate_size": 24, "text_hidden_size": 32}
    config = transformers.Molmo2Config(
        vision_config=vision,
        adapter_config=adapter,
        text_config=TEXT | {"additional_vocab_size": 8},
        initializer_range=TEXT["initializer_range"],
        image_patch_id=IMAGE,
        image_start_token_id=VISION_START,
        low_res_image_start_token_id=VISION_START,
        image_end_token_id=VISION_END,
        frame_start_token_id=VISION_START,
        frame_end_token_id=VISION_END,
    )
    return build(transformers.Molmo2ForConditionalGeneration, config, seed)


def tiny_glm4v(seed: int = 0) -> PreTrainedModel:
    """GLM-4.1V: gate and up are one matrix; the merger sits inside the vision tower."""
    config = Glm4vConfig(
        vision_config=QWEN_VISION | {"image_size": 16, "patch_size": 4},
        text_config=qwen_text([1, 1, 2]),
        image_token_id=IMAGE,
        image_start_token_id=VISION_START,
        image_end_token_id=VISION_END,
        video_token_id=VIDEO,
        video_start_token_id=VISION_START,
        video_end_token_id=VISION_END,
    )
    return build(Glm4vForConditionalGeneration, config, seed)


def tiny_minicpmv(seed: int = 0) -> PreTrainedModel:
    """MiniCPM-V 4.6 on Qwen3.5: of three layers the middle one attends, the others carry a state along."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
    text = Qwen3_5TextConfig(
        **TEXT,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        rope_parameters=rope,
    )
    config = MiniCPMV4_6Config(
        vision_config=VISION | {"patch_size": 4, "image_size": 32},
        text_config=text,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        insert_layer_id=0,
    )
    return build(MiniCPMV4_6ForConditionalGeneration, config, seed)


def tiny_phi4_multimodal(seed: int = 0) -> PreTrainedModel:
    """Phi-4-multimodal, whose towers of pictures and of sound sit inside its text decoder."""
    audio = {"hidden_size": 16, "intermediate_size": 24, "num_blocks": 1, "num_attention_heads": 2}
    audio |= {"ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "nemo_conv_channels": 16}
    config = Phi4MultimodalConfig(
        **HEADS,
        vision_config=VISION | {"image_token_id": IMAGE, "crop_size": 16, "patch_size": 4},
        audio_config=audio | {"input_size": 16, "audio_token_id": VIDEO},
    )
    return build(Phi4MultimodalForCausalLM, config, seed)


MORE_FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen2_vl": tiny_qwen2_vl,
    "gemma3_vl": tiny_gemma3_vl,
    "paligemma2": tiny_paligemma2,
    "mistral3": tiny_mistral3,
    "mllama": tiny_mllama,
    "llava_phi3": tiny_llava_phi3,
    "glm4v": tiny_glm4v,
    "minicpmv": tiny_minicpmv,
}
if "molmo2" in CONFIG_MAPPING:  # since transformers 5.20
    MORE_FAMILIES["molmo2"] = tiny_molmo2
