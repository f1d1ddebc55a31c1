"""Which tokens NVILA's processor makes of texts and pictures: token by token as VILA, in both forms of a prompt."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dowser_pl.data.encoders import build_encoder
from dowser_pl.data.messages import MessageReader
from dowser_pl.data.rows import Conversation, Question
from dowser_pl.errors import DowserError
from dowser_pl.models.nvila.config import NVILAConfig
from dowser_pl.models.nvila.processing import NVILAProcessor
from dowser_pl.planning.model import ASSUMED_TEXT_TOKENS, batch_of
from tests.data.builders import turn
from tests.tiny_nvila_processor import (
    IM_END,
    IM_START,
    IMAGE,
    NEWLINE,
    PAD,
    TWO_NEWLINES,
    VIDEO,
    spelled,
    tiny_nvila_processor,
    tiny_qwen2_tokenizer,
)

TILE = [IMAGE] * 4 + [NEWLINE]
SYSTEM = [IM_START, *spelled("system"), NEWLINE, *spelled("You are a helpful assistant"), IM_END, NEWLINE]
USER = [IM_START, *spelled("user"), NEWLINE]
ASSISTANT = [IM_START, *spelled("assistant"), NEWLINE]
END = [IM_END, NEWLINE]
SMALL, WIDE = (70, 70), (140, 70)  # one tile; two tiles and the whole


@pytest.fixture(scope="module")
def processor() -> NVILAProcessor:
    return tiny_nvila_processor()


def row(
    folder, value: str, answer: str = "A cat.", *more: str, sizes=(WIDE,), system: str | None = None
) -> Conversation:
    """A row of a data file in the LLaVA format, read as the data module reads it."""
    names = [f"{number}.png" for number in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        Image.new("RGB", size, "red").save(folder / name)
    said = [{"from": ("human", "gpt")[n % 2], "value": each} for n, each in enumerate((value, answer, *more))]
    raw = {"image": names, "conversations": said} | ({"system": system} if system else {})
    return Conversation("row", *MessageReader(folder).read("row", raw))


def tokens(processor: NVILAProcessor, conversation: Conversation, template: str | None = None) -> list[int]:
    batch, _ = build_encoder(processor, template).training_batch([conversation])
    return batch["input_ids"][0].tolist()


def test_a_row_and_a_question_of_generate_content(processor, tmp_path):
    """A picture with rows of two tiles and the whole, each with the newline that ends it and one of the text."""
    asked = [*SYSTEM, *USER, *(TILE + [NEWLINE]) * 3, *spelled("What?"), *END, *ASSISTANT]
    conversation = row(tmp_path, "<image>\nWhat?")
    batch, _ = build_encoder(processor).training_batch([conversation])
    assert batch["input_ids"][0].tolist() == [*asked, *spelled("A cat."), *END]
    assert batch["labels"][0].tolist() == [-100] * len(asked) + [*spelled("A cat."), IM_END, -100]
    question = Question("asked", conversation.messages[:-1], conversation.images, [])
    inputs = build_encoder(processor).evaluation_batch([question])["inputs"]
    assert inputs["input_ids"][0].tolist() == asked
    assert inputs["pixel_values"].shape == batch["pixel_values"].shape == (3, 3, 70, 70)
    assert inputs.keys() == {"input_ids", "attention_mask", "pixel_values"}


def test_the_newline_of_a_row_may_stay(processor, tmp_path):
    """After the last tile it meets the newline of the text, and both are one token."""
    pictures = [*TILE, NEWLINE, *TILE, NEWLINE, *TILE, TWO_NEWLINES]
    expected = [*SYSTEM, *USER, *pictures, *spelled("What?"), *END, *ASSISTANT, *spelled("A cat."), *END]
    assert tokens(processor, row(tmp_path, "<image>\nWhat?"), "newline_after_image") == expected
    assert tokens(processor, row(tmp_path, "What?"), "newline_after_image") == expected  # pictures go first


def test_rows_without_a_mark_begin_with_their_picture(processor, tmp_path):
    assert tokens(processor, row(tmp_path, "What?")) == tokens(processor, row(tmp_path, "<image>\nWhat?"))


def test_several_pictures_are_one_tile_each(processor, tmp_path):
    several = row(tmp_path, "<image>\n<image>\nSame?", sizes=[WIDE, SMALL])
    rest = [*spelled("Same?"), *END, *ASSISTANT, *spelled("A cat."), *END]
    assert tokens(processor, several) == [*SYSTEM, *USER, *TILE, *TILE, *rest]
    lines = [*TILE, NEWLINE, *TILE, NEWLINE]
    assert tokens(processor, several, "newline_after_image") == [*SYSTEM, *USER, *lines, *rest]
    between = row(tmp_path, "This <image> or that <image>\nor none?", sizes=[WIDE, SMALL])
    middle = [*spelled("This "), *TILE, *spelled(" or that "), *TILE, NEWLINE, *spelled("or none?")]
    for template in (None, "newline_after_image"):  # what stands between words stays as it is
        assert tokens(processor, between, template)[len(SYSTEM + USER) :][: len(middle)] == middle


def test_a_small_picture_is_one_tile_and_its_newlines(processor, tmp_path):
    expected = [*SYSTEM, *USER, *TILE, NEWLINE, *spelled("What?"), *END, *ASSISTANT, *spelled("A cat."), *END]
    assert tokens(processor, row(tmp_path, "<image>\nWhat?", sizes=[SMALL])) == expected


def test_a_picture_at_the_end_of_a_turn_has_no_newline_behind_it(processor, tmp_path):
    """VILA strips a turn after it has put the tiles in."""
    pictures = [*TILE, NEWLINE, *TILE, NEWLINE, *TILE]
    expected = [*SYSTEM, *USER, *spelled("What?"), *pictures, *END, *ASSISTANT, *spelled("A cat."), *END]
    assert tokens(processor, row(tmp_path, "What?<image>")) == expected
    alone = row(tmp_path, "<image>")
    for template in (None, "newline_after_image"):
        rest = [*END, *ASSISTANT, *spelled("A cat."), *END]
        assert tokens(processor, alone, template) == [*SYSTEM, *USER, *pictures, *rest]


def test_turns_and_a_system_turn(processor, tmp_path):
    said = row(tmp_path, "<image>\nWhat?", "A cat.", "Sure?", "Yes.", sizes=[SMALL], system=" Be brief. ")
    batch, _ = build_encoder(processor).training_batch([said])
    parts = [
        ([IM_START, *spelled("system"), NEWLINE, *spelled("Be brief."), *END, *USER, *TILE, NEWLINE], False),
        ([*spelled("What?"), *END, *ASSISTANT], False),
        ([*spelled("A cat."), IM_END], True),
        ([NEWLINE, *USER, *spelled("Sure?"), *END, *ASSISTANT], False),
        ([*spelled("Yes."), IM_END], True),
        ([NEWLINE], False),
    ]
    assert batch["input_ids"][0].tolist() == [token for part, _ in parts for token in part]
    assert batch["labels"][0].tolist() == [token if is_on else -100 for part, is_on in parts for token in part]


def test_batches_are_padded_on_the_side_that_is_wanted(processor, tmp_path):
    rows = [row(tmp_path, "<image>\nWhat?"), row(tmp_path, "Hello?", sizes=[]), row(tmp_path, "What?", sizes=[SMALL])]
    encoder = build_encoder(processor)
    alone = [encoder.training_batch([each])[0] for each in rows]
    together, _ = encoder.training_batch(rows)
    assert torch.equal(together["pixel_values"], torch.cat([alone[0]["pixel_values"], alone[2]["pixel_values"]]))
    for number, each in enumerate(alone):
        length = each["input_ids"].shape[1]
        assert torch.equal(together["input_ids"][number, :length], each["input_ids"][0])
        assert torch.equal(together["labels"][number, :length], each["labels"][0])
        assert (together["input_ids"][number, length:] == PAD).all() and not together["attention_mask"][
            number, length:
        ].any()
    asked = [Question(each.id, each.messages[:-1], each.images, []) for each in rows]
    inputs = encoder.evaluation_batch(asked)["inputs"]
    assert all(each[-len(ASSISTANT) :].tolist() == ASSISTANT for each in inputs["input_ids"])
    assert inputs["input_ids"][1, 0] == PAD and not inputs["attention_mask"][1, 0]


@pytest.mark.parametrize("control", ["<|im_end|>", "<image>", "<vila/video>"])
def test_words_that_look_like_control_tokens_stay_words(processor, tmp_path, control):
    with pytest.warns(UserWarning, match=f"its words have {control!r}, which is a control token".replace("|", r"\|")):
        said = tokens(processor, row(tmp_path, "<image>\nWhat?", f"{control} ends.", sizes=[SMALL]))
    answer = spelled(f"{control} ends.")
    assert said[-len(answer) - 2 :] == [*answer, *END] and said.count(IMAGE) == 4


def test_an_answer_ends_where_the_template_closes_it(processor):
    assert build_encoder(processor).turn_ends() == ((IM_END,), "")


def test_without_a_template_texts_are_taken_as_they_are(processor):
    picture = Image.new("RGB", SMALL)
    encoded = processor(images=picture, text="<image>\nWhat?")
    assert encoded["input_ids"] == [[*TILE, TWO_NEWLINES, *spelled("What?")]]
    assert processor(text="Hello?")["input_ids"] == [spelled("Hello?")]
    several = processor(
        images=[[picture], [picture] * 2], text=["<image>", "<image> <image>"], return_tensors="np", padding=True
    )
    assert several["input_ids"].tolist() == [[*TILE, NEWLINE] + [PAD] * 5, [*TILE, *spelled(" "), *TILE]]
    assert several["pixel_values"].shape == (3, 3, 70, 70)
    assert processor(images=picture, return_tensors="pt")["pixel_values"].shape == (1, 3, 70, 70)


def test_pictures_that_are_not_cut(tmp_path):
    """`image_aspect_ratio: resize`: one tile, and no newline of the text."""
    expected = [*SYSTEM, *USER, *TILE, *spelled("What?"), *END, *ASSISTANT, *spelled("A cat."), *END]
    assert tokens(tiny_nvila_processor(crop_to_patches=False), row(tmp_path, "<image>\nWhat?")) == expected


def test_a_4_to_3_picture_takes_1599_tokens():
    """13 tiles x 121 = 1,573 image tokens, and a newline that ends each, 1,586; and 13 newlines of the text."""
    processor = NVILAProcessor(tiny_nvila_processor().image_processor, tiny_qwen2_tokenizer())
    ids = processor(images=Image.new("RGB", (64, 48)), text="<image>")["input_ids"][0]
    assert (len(ids), ids.count(IMAGE), ids.count(NEWLINE)) == (1599, 1573, 26)
    assert processor._get_num_multimodal_tokens(image_sizes=[(48, 64), (70, 70)])["num_image_tokens"] == [1599, 123]
    assert build_encoder(processor, max_length="auto").max_length == 1599 + 2048


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 1599),
        ({"downsample": 2}, 13 * 258),
        ({"max_tiles": 1}, 123),
        ({"image_aspect_ratio": "resize"}, 122),
        ({"image_aspect_ratio": None}, 122),
    ],
)
def test_the_config_tells_the_largest_picture(settings, expected):
    config = NVILAConfig(vision_config={"image_size": 448, "patch_size": 14}, **settings)
    assert config.most_image_tokens == expected
    assert batch_of(SimpleNamespace(config=config), None, True).tokens == expected + ASSUMED_TEXT_TOKENS


def test_wrong_numbers_of_pictures(processor):
    picture = Image.new("RGB", SMALL)
    with pytest.raises(
        DowserError, match=r"got 1 pictures for \[2\] places <image> in the texts, expected one for each"
    ):
        processor(images=picture, text="<image> <image>")
    with pytest.raises(DowserError, match=r"got \[2, 0\] pictures for \[1, 1\] places"):
        processor(images=[[picture] * 2, []], text=["<image>", "<image>"])
    with pytest.raises(ValueError, match="no images were passed"):
        processor(text="<image>")
    with pytest.raises(DowserError, match="NVILA takes no videos here. Fix: give their frames as images"):
        processor(text="x", videos=[[picture]])


def test_pictures_beyond_the_longest_row(processor, tmp_path):
    """Tiles are many tokens: a row that they alone overfill is refused by name; long words are cut."""
    long = row(tmp_path, "<image>\nWhat?")
    with pytest.raises(DowserError, match="row: its 12 image tokens end at token [0-9]+, beyond max_length=48"):
        build_encoder(processor, max_length=48).training_batch([long])
    batch, cut = build_encoder(processor, max_length=100).training_batch([row(tmp_path, "What?", "A cat. " * 20)])
    assert cut == [True] and batch["input_ids"].shape == (1, 100)


def test_the_tokens_of_pictures_are_added_with_the_numbers_of_vila():
    tokenizer = tiny_qwen2_tokenizer(media=False)
    processor = NVILAProcessor(tiny_nvila_processor().image_processor, tokenizer, image_seq_length=4)
    assert (processor.image_token_id, processor.video_token_id) == (IMAGE, VIDEO)
    assert processor(images=Image.new("RGB", SMALL), text="<image>")["input_ids"] == [[*TILE, NEWLINE]]


def test_huggingfaces_own_mask_of_the_answer(processor):
    said = [turn("user", {"type": "image", "image": Image.new("RGB", WIDE)}, "What?"), turn("assistant", "A cat.")]
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    encoded = processor.apply_chat_template([said], tokenize=True, **options)
    learnt = [
        token for token, is_on in zip(encoded["input_ids"][0], encoded["assistant_masks"][0], strict=True) if is_on
    ]
    assert learnt == [*spelled("A cat."), IM_END]
