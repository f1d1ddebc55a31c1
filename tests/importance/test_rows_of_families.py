"""Families with processors of their own write rows after pictures, read them, and make their pictures again."""

from functools import partial

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from dowser_pl.data.templates import ChatTemplate
from dowser_pl.importance import Openers, Rows, Writers
from dowser_pl.importance.base_outputs import current_logits, record_base
from dowser_pl.importance.drift import measure_drift
from dowser_pl.importance.probe import stacked
from dowser_pl.importance.writing import RowWriter, Start
from dowser_pl.models.generation import Ending, own_ends
from dowser_pl.models.layers import text_inputs, text_model
from dowser_pl.models.nvila import NVILAConfig, NVILAForConditionalGeneration
from tests.data import test_families as processors
from tests.data.builders import chat_template
from tests.tiny_models import BOS, FAMILIES, IMAGE, QWEN_VISION, TEXT, VISION, build, tiny_tokenizer
from tests.tiny_more_models import tiny_mllama

PICTURES = [Image.new("RGB", (40 + 9 * n, 31), (n * 60, 90, 200 - n * 30)) for n in range(4)]
SOURCES = ["text", "chat", "turn", "noise", "train", "shuffle", "mosaic"]


def llava_next(text, ids):
    vision = CLIPVisionConfig(**VISION)
    options = {"vision_feature_layer": -1, "image_grid_pinpoints": processors.GRID}
    config = LlavaNextConfig(
        vision_config=vision, text_config=MistralConfig(**text), image_token_index=ids("<image>"), **options
    )
    return LlavaNextForConditionalGeneration, config


def idefics3(text, ids):
    vision, image = VISION | {"patch_size": 4}, ids("<image>")
    config = Idefics3Config(
        vision_config=vision, text_config=LlamaConfig(**text), image_token_id=image, pad_token_id=text["pad_token_id"]
    )
    return Idefics3ForConditionalGeneration, config


def internvl(text, ids):
    vision, image = VISION | {"patch_size": 4}, ids("<image>")
    config = InternVLConfig(
        vision_config=vision, text_config=Qwen2Config(**text), image_token_id=image, image_seq_length=4
    )
    return InternVLForConditionalGeneration, config


def gemma3(text, ids):
    tokens = {"image_token_index": ids("<image>"), "boi_token_index": ids("<boi>"), "eoi_token_index": ids("<eoi>")}
    vision, text = SiglipVisionConfig(**VISION, vision_use_head=False), Gemma3TextConfig(**text, sliding_window=64)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens)
    return Gemma3ForConditionalGeneration, config


def qwen2_5_vl(text, ids):
    vision = QWEN_VISION | {"patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1]}
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
    tokens = {"image_token_id": "<|image_pad|>", "vision_start_token_id": "<|vision_start|>"}
    tokens |= {"vision_end_token_id": "<|vision_end|>", "video_token_id": "<unk>"}
    config = Qwen2_5_VLConfig(
        text_config=text | {"rope_parameters": rope},
        vision_config=vision,
        **{name: ids(token) for name, token in tokens.items()},
    )
    return Qwen2_5_VLForConditionalGeneration, config


def nvila(text, ids):
    vision = SiglipVisionConfig(**VISION | {"patch_size": 4}, vision_use_head=False)
    config = NVILAConfig(text_config=Qwen2Config(**text), vision_config=vision, image_token_id=ids("<image>"))
    return NVILAForConditionalGeneration, config


def mllama(text, ids):
    vision = tiny_mllama().config.vision_config
    text = {name: value for name, value in text.items() if name != "head_dim"} | {"cross_attention_layers": [1]}
    return MllamaForConditionalGeneration, MllamaConfig(
        vision_config=vision, text_config=text, image_token_index=ids("<image>")
    )


@pytest.mark.parametrize("family", [llava_next, idefics3, internvl, gemma3, qwen2_5_vl, nvila, mllama])
def test_a_family_writes_reads_and_makes_again_rows_of_every_source(family):
    processor = getattr(processors, family.__name__)(chat_template())
    tokenizer = processor.tokenizer
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text = TEXT | special | {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    model = build(*family(text, tokenizer.convert_tokens_to_ids), 0).eval()
    ending = Ending(own_ends(model, tokenizer))
    writer = RowWriter(model, processor, 1.0, 4, partial(text_inputs, text_model(model)), ending)
    openers = Openers(*ChatTemplate(processor).openers())
    writers = Writers(writer, Rows(per_source=3, num_tokens=6, held_out=0.4), openers, PICTURES)
    assert writers.sources() == SOURCES
    rows = writers.in_turns(SOURCES, range(3), torch.no_grad()(partial(current_logits, model)))
    assert [row.kind for row in rows] == SOURCES * 3
    for row in rows:
        places = row.tokens == model.config.image_token_id
        assert bool(places.any()) == bool(row.image) and not bool((places & row.is_text).any())
        again = writers.remade(row.kind, row.number, row.tokens)
        assert all(torch.equal(again.image[name], value) for name, value in row.image.items())
    drifts = measure_drift(model, record_base(model, rows, 4), 3)  # read in other company
    assert all(abs(drift.kl) < 1e-5 and drift.agreement == 1.0 for drift in drifts.values())


@torch.no_grad()
def test_what_paligemma_wrote_behind_a_picture_does_not_see_its_own_future():
    """With the types that its processor gives a picture and a question, all 0, every token would see all others."""
    model = FAMILIES["paligemma"]().eval()
    size = model.config.vision_config.image_size
    image = {"token_type_ids": torch.zeros(1, 6, dtype=torch.int64), "pixel_values": torch.rand(1, 3, size, size)}
    start = Start(torch.tensor([IMAGE] * 4 + [BOS, 20]), image)
    writer = RowWriter(model, tiny_tokenizer(), 1.0, 1, partial(text_inputs, model), Ending(()))
    logits = []
    for last in (32, 33):
        prompt = writer.prompt(start, torch.tensor([30, 31, last]), "noise", 0)
        assert prompt.image["token_type_ids"].tolist() == [[0] * 6 + [1] * 3]
        inputs, _ = stacked([prompt], torch.device("cpu"), writer.text_inputs)
        logits.append(model(**inputs, use_cache=False).logits[0, :-1])
    torch.testing.assert_close(logits[0], logits[1])
