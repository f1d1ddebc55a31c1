"""The model before its projector is trained: a language model and a vision tower in one LLaVA, and its processor."""

from pathlib import Path

import torch
from transformers import (
    Dinov2Model,
    GenerationConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from real_model.pictures import SIDE

IMAGE = "<image>"
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
_MEAN, _DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, as DINOv2 was trained on


def processor_of(tokenizer: PreTrainedTokenizerFast, patch: int) -> LlavaProcessor:
    """A processor of pictures of 56 x 56 pixels; the tokenizer gets one token more, `<image>`."""
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE]})
    tokenizer.padding_side = "left"
    pictures = BitImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=_MEAN,
        image_std=_DEVIATION,
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.read_text(encoding="utf-8"),
    )


def join(
    language: LlamaForCausalLM, vision: Dinov2Model, processor: LlavaProcessor, seed: int
) -> LlavaForConditionalGeneration:
    """Both in one float32 model, with a projector of random weights from the seed.

    The embedding of `<image>`, which is never read, is the mean of all others: so the head never prefers it.
    """
    language.config.vocab_size = len(processor.tokenizer)
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=language.config,
        image_token_id=processor.tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // vision.config.patch_size) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    weights = language.model.state_dict()
    words = weights["embed_tokens.weight"]
    mean = words.double().mean(0, keepdim=True).to(words.dtype)  # in float64: the same bits on every CPU
    weights["embed_tokens.weight"] = torch.cat([words, mean])
    model.model.language_model.load_state_dict(weights)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.tie_weights()
    text = config.text_config
    model.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )
    return model.eval()
