"""Small real models of every supported family, random weights, built from their configs in milliseconds.

Every model shares one vocabulary (`VOCABULARY`, 96 words), hidden size 32, MLP size 48 and three decoder
layers (two for T5), so that tests can state exact counts. The same seed gives the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    T5Config,
)

from dowser_pl.models.nvila import NVILAConfig, NVILAForConditionalGeneration
from tests.tiny_experts import EXPERT_FAMILIES
from tests.tiny_more_models import MORE_FAMILIES
from tests.tiny_sizes import (
    BOS,
    EOS,
    IMAGE,
    IMAGE_SIZE,
    PAD,
    PATCH_SIZE,
    QFORMER,
    QWEN_TOKENS,
    QWEN_VISION,
    TEXT,
    TOKENS,
    VIDEO,
    VISION,
    VOCABULARY,
    build,
    qwen_text,
)

# Turns end with </s>; what an assistant says, its </s> included, is marked as generated.
CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{{ ' ' + message['role'] + ' :' }}"
    "{% generation %}{% if message['role'] == 'assistant' %}{% if message['content'] is string %}"
    "{{ ' ' + message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ ' ' + part['text'] }}{% endfor %}{% endif %}{{ ' </s>' }}{% endif %}{% endgeneration %}"
    "{% if message['role'] != 'assistant' %}{% if message['content'] is string %}"
    "{{ ' ' + message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ ' <image>' }}{% else %}{{ ' ' + part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' assistant :' }}{% endif %}"
)


def tiny_llava(seed: int = 0, **text: object) -> PreTrainedModel:
    """LLaVA on Llama: four image tokens per 16 x 16 image; `text` overrides Llama settings."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**(TEXT | text)),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    return build(LlavaForConditionalGeneration, config, seed)


def tiny_llava_next(seed: int = 0) -> PreTrainedModel:
    """LLaVA-NeXT on Mistral, with images cut into 16 x 16 tiles."""
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=MistralConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )
    return build(LlavaNextForConditionalGeneration, config, seed)


def tiny_llava_onevision(seed: int = 0) -> PreTrainedModel:
    """LLaVA-OneVision on Qwen2 (biases on q, k, v) with a SigLIP tower."""
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[16, 16], [16, 32], [32, 16]],
    )
    return build(LlavaOnevisionForConditionalGeneration, config, seed)


def tiny_qwen2_5_vl(seed: int = 0) -> PreTrainedModel:
    """Qwen2.5-VL: the merger that maps patches to text sits inside the vision tower."""
    vision = QWEN_VISION | {"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=qwen_text([1, 1, 2]), **QWEN_TOKENS)
    return build(Qwen2_5_VLForConditionalGeneration, config, seed)


def tiny_qwen3_vl(seed: int = 0) -> PreTrainedModel:
    """Qwen3-VL: one deepstack merger beside the main one."""
    vision = QWEN_VISION | {"patch_size": 4, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(vision_config=vision, text_config=qwen_text([2, 1, 1]), **QWEN_TOKENS)
    return build(Qwen3VLForConditionalGeneration, config, seed)


def tiny_internvl(seed: int = 0) -> PreTrainedModel:
    """InternVL on Qwen2: four image tokens per 16 x 16 tile."""
    config = InternVLConfig(
        vision_config=VISION | {"patch_size": 4},
        text_config=Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return build(InternVLForConditionalGeneration, config, seed)


def tiny_idefics3(seed: int = 0) -> PreTrainedModel:
    """Idefics3 on Llama: four image tokens per 16 x 16 tile."""
    config = Idefics3Config(
        vision_config=VISION | {"patch_size": 4},
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        pad_token_id=PAD,
    )
    return build(Idefics3ForConditionalGeneration, config, seed)


def tiny_smolvlm(seed: int = 0) -> PreTrainedModel:
    """SmolVLM on Llama: four image tokens per 16 x 16 tile."""
    config = SmolVLMConfig(
        vision_config=VISION | {"patch_size": 4},
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        pad_token_id=PAD,
    )
    return build(SmolVLMForConditionalGeneration, config, seed)


def tiny_paligemma(seed: int = 0) -> PreTrainedModel:
    """PaliGemma: lm_head tied to the embeddings, as in the published models."""
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False, projection_dim=32),
        text_config=GemmaConfig(**(TEXT | {"tie_word_embeddings": True})),
        image_token_index=IMAGE,
        projection_dim=32,
    )
    return build(PaliGemmaForConditionalGeneration, config, seed)


def tiny_nvila(seed: int = 0) -> PreTrainedModel:
    """NVILA: 4 x 4 patches of a 16 x 16 tile are folded to four image tokens, the last ones with zeros beside."""
    config = NVILAConfig(
        text_config=Qwen2Config(**TEXT),
        vision_config=SiglipVisionConfig(**VISION | {"patch_size": 4}, vision_use_head=False),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return build(NVILAForConditionalGeneration, config, seed)


def tiny_instructblip(seed: int = 0, text_config: object | None = None, **qformer: object) -> PreTrainedModel:
    """InstructBLIP on Llama unless another text config is given: a Q-Former with four queries."""
    config = InstructBlipConfig(
        vision_config=VISION,
        qformer_config=QFORMER | qformer,
        text_config=text_config or LlamaConfig(**TEXT),
        num_query_tokens=4,
        image_token_index=IMAGE,
    )
    return build(InstructBlipForConditionalGeneration, config, seed)


def tiny_instructblip_t5(seed: int = 0) -> PreTrainedModel:
    """InstructBLIP on a gated T5: two encoder and two decoder blocks, lm_head tied to the embeddings."""
    text = T5Config(
        vocab_size=96,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
    )
    return tiny_instructblip(seed, text)


def tiny_blip2(seed: int = 0) -> PreTrainedModel:
    """BLIP-2 on OPT, whose decoder layers own fc1 and fc2 directly."""
    text = OPTConfig(
        vocab_size=96,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        **TOKENS,
    )
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=text,
        num_query_tokens=4,
        image_token_index=IMAGE,
    )
    return build(Blip2ForConditionalGeneration, config, seed)


def tiny_blip2_gpt2(seed: int = 0) -> PreTrainedModel:
    """BLIP-2 on GPT-2, whose matrices are Conv1D (stored transposed)."""
    text = GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, **TOKENS)
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=text,
        num_query_tokens=4,
        image_token_index=IMAGE,
    )
    return build(Blip2ForConditionalGeneration, config, seed)


def tiny_llama(seed: int = 0) -> PreTrainedModel:
    """Llama by itself."""
    return build(LlamaForCausalLM, LlamaConfig(**TEXT), seed)


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llava": tiny_llava,
    "llava_next": tiny_llava_next,
    "llava_onevision": tiny_llava_onevision,
    "qwen2_5_vl": tiny_qwen2_5_vl,
    "qwen3_vl": tiny_qwen3_vl,
    "internvl": tiny_internvl,
    "idefics3": tiny_idefics3,
    "smolvlm": tiny_smolvlm,
    "paligemma": tiny_paligemma,
    "nvila": tiny_nvila,
    **MORE_FAMILIES,
    "instructblip": tiny_instructblip,
    "instructblip_t5": tiny_instructblip_t5,
    "blip2": tiny_blip2,
    "llama": tiny_llama,
    "qwen2": lambda: build(Qwen2ForCausalLM, Qwen2Config(**TEXT), 0),
    "qwen3": lambda: build(Qwen3ForCausalLM, Qwen3Config(**TEXT), 0),
    "mistral": lambda: build(MistralForCausalLM, MistralConfig(**TEXT), 0),
    "gemma2": lambda: build(Gemma2ForCausalLM, Gemma2Config(**TEXT | {"tie_word_embeddings": True}), 0),
    "gemma3": lambda: build(Gemma3ForCausalLM, Gemma3TextConfig(**TEXT | {"tie_word_embeddings": True}), 0),
    "phi3": lambda: build(Phi3ForCausalLM, Phi3Config(**TEXT), 0),
}
TEXT_FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3")
"""Those of text alone: a tokenizer is all that comes with them."""


def tiny_tokenizer(names_image: bool = True) -> PreTrainedTokenizerFast:
    """One id per word of VOCABULARY, split at spaces; others are <unk>. Decodes to words with spaces.

    Args:
        names_image: whether it has an attribute `image_token`, which the processor of InstructBLIP wants to set itself.
    """
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"} if names_image else ["<image>"],
    )


def make_processor(chat_template: str | None = CHAT_TEMPLATE) -> LlavaProcessor:
    """A processor for `tiny_llava`: PIL images resized to 16 x 16, `<image>` expanded to four tokens."""
    images = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    )
    return LlavaProcessor(
        images,
        tiny_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )


def make_processor_folder(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Write `make_processor` into `folder` and return the folder."""
    make_processor(chat_template).save_pretrained(folder)
    return folder


def save_text_model(folder: Path, family: str = "llama", chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Write a model of text alone and its tokenizer, so that from_pretrained works; returns the folder."""
    (FAMILIES | EXPERT_FAMILIES)[family]().save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_llava(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write model, generation config and processor, so that from_pretrained works; returns the folder."""
    tiny_llava(seed).to(dtype).save_pretrained(folder)
    return make_processor_folder(folder)


def save_tiny_instructblip(folder: Path, model: PreTrainedModel | None = None) -> Path:
    """Write an InstructBLIP (`tiny_instructblip` unless another is given) and its processor; returns the folder."""
    (model or tiny_instructblip()).save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    words, asked = (tiny_tokenizer(names_image=False) for _ in range(2))
    begins = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])  # as that of Vicuna
    words.backend_tokenizer.post_processor = begins
    InstructBlipProcessor(images, words, asked, num_query_tokens=4).save_pretrained(folder)
    return folder
