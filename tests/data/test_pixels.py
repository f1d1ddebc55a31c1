"""How large images may be, and the longest row that fits them."""

import json

import pytest
from PIL import Image
from transformers import (
    InstructBlipProcessor,
    PaliGemmaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from dowser_pl.data import Conversation, ConversationData, TaskFile
from dowser_pl.data.encoders import TEXT_TOKENS, build_encoder, largest_image_tokens, limit_pixels
from tests.data.builders import IMAGE, build_llava, build_tokenizer, chat_template, turn
from tests.data.test_families import FAMILIES, SIZE, Qwen, gemma3, idefics3, internvl, llava_next
from tests.tiny_models import QWEN_TOKENS, QWEN_VISION, TEXT, build, qwen_text

PUBLISHED = {"shortest_edge": 3136, "longest_edge": 12_845_056}  # min_pixels and max_pixels of Qwen2.5-VL
SHOTS = {"screenshot": (1920, 1080), "A4 at 150 dpi": (1240, 1754), "phone photo": (4032, 3024)}  # width, height


def published(size=PUBLISHED):
    images = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, size=dict(size))
    template = chat_template().replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    return Qwen(images, build_tokenizer(), None, chat_template=template)


def row(width, height):
    image = Image.new("RGB", (width, height), "red")
    return Conversation("row", [turn("user", IMAGE, "what?"), turn("assistant", "red")], [image])


@pytest.mark.parametrize("size", SHOTS.values(), ids=SHOTS)
def test_what_people_have_fits_the_defaults(size):
    data = ConversationData("train.json")
    processor = published()
    encoder = build_encoder(processor, None, data.max_length)
    assert encoder.max_length == 16384 + TEXT_TOKENS
    batch, cut = encoder.training_batch([row(*size)])
    images = int((batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum())
    assert images == round(size[0] / 28) * round(size[1] / 28)  # not one pixel was given up
    assert cut == [False] and (batch["labels"] != -100).any()


def test_a_page_trains():
    """One step on all tokens of an A4 page, in a model of Qwen2.5-VL's own patches."""
    vision = QWEN_VISION | {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": []}
    ids = build_tokenizer().convert_tokens_to_ids
    tokens = QWEN_TOKENS | {"image_token_id": ids("<|image_pad|>"), "video_token_id": ids("<|video_pad|>")}
    tokens |= {"vision_start_token_id": ids("<|vision_start|>"), "vision_end_token_id": ids("<|vision_end|>")}
    text = qwen_text([1, 1, 2]) | {"vocab_size": 400, "max_position_embeddings": 8192}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, **tokens)
    model = build(Qwen2_5_VLForConditionalGeneration, config, 0)
    batch, _ = build_encoder(published(), None, "auto").training_batch([row(*SHOTS["A4 at 150 dpi"])])
    batch.pop("ids")
    loss = model(**batch).loss
    loss.backward()
    assert batch["input_ids"].shape[1] > 2700 and loss.isfinite()
    assert TEXT["hidden_size"] == 32  # or this takes minutes


@pytest.mark.parametrize("make", [build_llava, *FAMILIES])
def test_no_image_takes_more_than_the_largest(make):
    processor = make(chat_template())
    encoder = build_encoder(processor)
    largest = largest_image_tokens(encoder)
    sizes = [(16, 16), (64, 64), (640, 480), (1000, 300), (300, 1000), (2000, 2000), (33, 190)]
    found = [int(encoder.image_positions(_ids(encoder, size)).sum()) for size in sizes]
    frame = 1  # Gemma 3 calls the token that begins an image its image token
    assert max(found) - frame <= largest < 3 * max(found)
    assert build_encoder(processor, None, "auto").max_length == largest + TEXT_TOKENS


def _ids(encoder, size):
    return encoder.training_batch([row(*size)])[0]["input_ids"]


def test_models_with_a_fixed_number_of_image_tokens():
    images = BlipImageProcessorPil(size=SIZE)
    processor = InstructBlipProcessor(images, build_tokenizer(), build_tokenizer(), num_query_tokens=4)
    assert largest_image_tokens(build_encoder(processor, "plain")) == 4
    images = SiglipImageProcessorPil(size=SIZE)
    images.image_seq_length = 4
    assert largest_image_tokens(build_encoder(PaliGemmaProcessor(images, build_tokenizer()))) == 4


def pixels(processor, size):
    """Of the image that the model is given."""
    batch, _ = build_encoder(processor).training_batch([row(*size)])
    return int(batch["image_grid_thw"].prod()) * 14**2


def test_fewer_and_more_pixels():
    processor = published()
    as_published = pixels(processor, (1920, 1080))
    for least, most in ((None, 500_000), (1_000_000, 1_100_000), (None, 600_000)):
        if most == 600_000:  # below the smallest number that was set before
            with pytest.raises(ValueError, match="at most max_pixels, got 1000000 and 600000"):
                limit_pixels(processor, least, most)
            continue
        limit_pixels(processor, least, most)
        assert 0.9 * most < pixels(processor, (1920, 1080)) <= most < as_published
        assert pixels(processor, (100, 100)) >= (least or 3136)
        assert largest_image_tokens(build_encoder(processor)) == most // 28**2
    limit_pixels(processor, 3136, 12_845_056)
    assert pixels(processor, (1920, 1080)) == as_published
    limit_pixels(processor, None, None)
    assert processor.image_processor.size["longest_edge"] == 12_845_056


@pytest.mark.parametrize("make", [build_llava, llava_next, idefics3, gemma3, internvl])
def test_processors_that_do_not_count_pixels_say_so(make):
    with pytest.raises(ValueError, match=r"max_pixels: got 5, but \w+ does not resize images to a number of pixels"):
        limit_pixels(make(chat_template()), None, 5)


def data_of(tmp_path, processor, **options):
    Image.new("RGB", (1920, 1080), "red").save(tmp_path / "a.png")
    said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "train.json").write_text(json.dumps([{"image": "a.png", "conversations": said}]))
    (tmp_path / "test.jsonl").write_text(json.dumps({"image": "a.png", "question": "q", "answer": "a"}))
    task = TaskFile("t", str(tmp_path / "test.jsonl"), "downstream")
    data = ConversationData(str(tmp_path / "train.json"), tasks=[task], **options)
    data.processor = processor
    return data


def test_one_setting_for_training_evaluation_and_export(tmp_path):
    processor = published()
    data = data_of(tmp_path, processor, max_pixels=200_000)
    data.setup("fit")
    (batch,), (asked,) = list(data.train_dataloader()), list(data.val_dataloader()[0])
    assert batch["pixel_values"].shape == asked["inputs"]["pixel_values"].shape
    assert len(batch["pixel_values"]) * 14**2 <= 200_000
    assert processor.image_processor.size["longest_edge"] == 200_000
    assert data._encoder.max_length == 200_000 // 28**2 + TEXT_TOKENS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": "long"}, "max_length must be a number of tokens, \"auto\" or null, got 'long'"),
        ({"check": "some"}, r"check must be one of \['first', 'all', 'none'\], got 'some'"),
        ({"max_length": 500}, "row 1: its .* image tokens end at token .*, beyond max_length=500"),
        ({"min_pixels": 20_000_000}, "min_pixels must be above 0 and at most max_pixels, got 20000000 and 12845056"),
        ({"max_pixels": -1}, "min_pixels must be above 0 and at most max_pixels, got 3136 and -1"),
    ],
)
def test_settings_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        data_of(tmp_path, published(), **options).setup("fit")
