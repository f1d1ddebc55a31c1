"""The embedded world's model before training: configuration, tokenizer, processor, initial weights."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dowser_pl.data.world.scenes import CELL, SIDE
from dowser_pl.data.world.text import BOS, EOS, IMAGE, PAD, SPECIAL, UNKNOWN, vocabulary

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
WORD_ID = {word: index for index, word in enumerate(vocabulary())}
NUM_IMAGE_TOKENS = (SIDE // CELL) ** 2
EMBEDDING_NORM = 2.0


def configuration() -> LlavaConfig:
    """Sizes: 1.5 million parameters, 0.4 of them in the vision tower."""
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=CELL,
        projection_dim=96,
    )
    text = LlamaConfig(
        vocab_size=len(WORD_ID),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=WORD_ID[BOS],
        eos_token_id=WORD_ID[EOS],
        pad_token_id=WORD_ID[PAD],
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=WORD_ID[IMAGE],
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def processor() -> LlavaProcessor:
    """Tokenizer of whole words, picture processor and chat template, as Hugging Face saves them."""
    words = Tokenizer(models.WordLevel(WORD_ID, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.read_text(encoding="utf-8"),
    )


def initial_model(seed: int) -> LlavaForConditionalGeneration:
    """Random float32 weights, with word embeddings of norm 2, so that they weigh as much as image tokens."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(configuration())
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding.mul_(EMBEDDING_NORM / embedding.norm(dim=1, keepdim=True).clamp_min(1e-6))
    return model


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write weights (float16 on disk, float32 once loaded), configuration, generation settings, processor."""
    assert not [word for word in SPECIAL if word not in WORD_ID]
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=16,
        bos_token_id=WORD_ID[BOS],
        eos_token_id=WORD_ID[EOS],
        pad_token_id=WORD_ID[PAD],
    )
    model.half().save_pretrained(folder)
    model.float().config.dtype = "float32"
    model.config.save_pretrained(folder)
    processor().save_pretrained(folder)
