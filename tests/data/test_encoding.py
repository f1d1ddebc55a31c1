"""Batches of the encoders: padding, truncation, image counts, and models that take the answer apart."""

import pytest
import torch
from PIL import Image

from dowser_pl.data import Conversation
from dowser_pl.data.encoders import DecoderEncoder, build_encoder
from dowser_pl.data.templates import ChatTemplate
from tests.data.builders import (
    IMAGE,
    build_llava,
    chat_template,
    many_images,
    one_image,
    picture,
    question,
    text_only,
    turn,
)

ROWS = [one_image(), many_images(), text_only()]


@pytest.fixture
def encoder():
    return build_encoder(build_llava(chat_template()))


def test_training_batch(encoder):
    batch, cut = encoder.training_batch(ROWS)
    assert batch["ids"] == ["one", "many", "text"]
    assert cut == [False] * 3
    assert batch["pixel_values"].shape == (4, 3, 16, 16)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["labels"].shape
    image = encoder.tokenizer.convert_tokens_to_ids("<image>")
    assert (batch["input_ids"] == image).sum(dim=1).tolist() == [4, 12, 0]
    lengths = batch["attention_mask"].sum(dim=1)
    assert all(row[:length].all() for row, length in zip(batch["attention_mask"], lengths, strict=True))  # right
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert (batch["input_ids"] == encoder.tokenizer.bos_token_id).sum() == 3  # once per row


def test_padding_does_not_change_labels(encoder):
    together, _ = encoder.training_batch(ROWS)
    for number, row in enumerate(ROWS):
        alone, _ = encoder.training_batch([row])
        length = alone["labels"].shape[1]
        assert torch.equal(together["labels"][number, :length], alone["labels"][0])


def test_text_only_batch_has_no_pixels(encoder):
    assert "pixel_values" not in encoder.training_batch([text_only()])[0]


def test_evaluation_batch(encoder):
    batch = encoder.evaluation_batch([question(row) for row in ROWS])
    inputs = batch["inputs"]
    assert batch["ids"] == ["one", "many", "text"]
    assert batch["references"] == [["red"], ["blue red"], ["no"]]
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    assert inputs["attention_mask"][:, -1].all()  # padded on the left
    texts = encoder.tokenizer.batch_decode(inputs["input_ids"])
    assert all(text.endswith("\nASSISTANT:") for text in texts)


def test_truncation_takes_text_at_the_end(encoder):
    row = one_image()
    row.messages[-1]["content"][0]["text"] = "green" * 30
    whole, _ = encoder.training_batch([row, text_only()])
    encoder.max_length = 40
    batch, cut = encoder.training_batch([row, text_only()])
    assert cut == [True, False]
    for key in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(batch[key], whole[key][:, :40])


def test_image_tokens_are_never_cut(encoder):
    encoder.max_length = 20
    with pytest.raises(ValueError, match=r"many: its 12 image tokens end at token \d+, beyond max_length=20"):
        encoder.training_batch([many_images()])


def test_a_row_that_loses_its_answer(encoder):
    row = Conversation("long", [turn("user", "what colour is it? " * 20), turn("assistant", "red")], [])
    encoder.max_length = 60
    with pytest.raises(ValueError, match=r"long: no token of the assistant's turns is left.*max_length=60"):
        encoder.training_batch([text_only(), row])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Conversation("r", [turn("user", IMAGE, "a"), turn("assistant", "b")], []), "got 0 images, expected 1"),
        (Conversation("r", [turn("user", "a"), turn("assistant", "b")], [picture()]), "got 1 images, expected 0"),
        (Conversation("r", [turn("user", "a")], []), "ends with an assistant turn"),
        (Conversation("r", [turn("assistant", "a")], []), "starts with a question"),
        (Conversation("r", [], []), "ends with an assistant turn"),
    ],
)
def test_bad_rows_are_named(encoder, row, message):
    with pytest.raises(ValueError, match=f"^r: .*{message}"):
        encoder.training_batch([one_image(), row])


def test_a_tokenizer_without_padding_uses_the_end_token():
    processor = build_llava(chat_template())
    processor.tokenizer.pad_token = None
    batch, _ = build_encoder(processor).training_batch(ROWS)
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


def test_decoder_labels():
    """The layout for T5: the prompt goes in, the answer is the decoder's."""
    processor = build_llava()
    template = ChatTemplate(
        processor, "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    )
    encoder = DecoderEncoder(processor, template, max_length=None)
    longer = Conversation("long", [turn("user", "hello"), turn("assistant", "green green")], [])
    batch, _ = encoder.training_batch([text_only(), longer])
    assert processor.tokenizer.batch_decode(batch["input_ids"]) == ["hello", "hello"]
    assert [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]] == ["no", "green green"]
    encoder.max_length = batch["input_ids"].shape[1]  # no question is longer; the limit is the decoder's too
    wordy = Conversation("wordy", [turn("user", "hello"), turn("assistant", "green " * 20)], [])
    batch, cut = encoder.training_batch([text_only(), wordy])
    assert batch["labels"].shape == batch["input_ids"].shape
    assert cut == [False, True]
    with pytest.raises(ValueError, match="many: LlavaProcessor takes one question and one answer per row"):
        encoder.training_batch([many_images()])


def test_images_become_rgb(encoder):
    row = Conversation("grey", one_image().messages, [Image.new("L", (9, 9), 128)])
    assert encoder.training_batch([row])[0]["pixel_values"].shape == (1, 3, 16, 16)


@pytest.mark.parametrize("generation", [True, False])
def test_an_answer_that_is_switched_off_has_no_labels(generation):
    encoder = build_encoder(build_llava(chat_template(generation)))
    row = many_images()
    row.messages[2]["loss"] = False
    batch, _ = encoder.training_batch([row])
    said = encoder.tokenizer.decode(batch["labels"][batch["labels"] != -100])
    assert said.endswith(" blue red</s>")
    assert "green" not in said
    whole, _ = encoder.training_batch([many_images()])
    assert whole["input_ids"].equal(batch["input_ids"])


def test_a_template_that_marks_another_number_of_answers():
    template = chat_template().replace("ASSISTANT:' }}", "ASSISTANT:' }}{% generation %}!{% endgeneration %} ", 1)
    row = many_images()
    row.messages[2]["loss"] = False
    with pytest.raises(ValueError, match="many: 1 of 2 answers are not to be learnt, but the chat template marks 4"):
        build_encoder(build_llava(template)).training_batch([row])


@pytest.mark.parametrize("generation", [True, False])
def test_a_template_that_drops_the_system_turn(generation):
    template = chat_template(generation).replace(
        "{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"
    )
    encoder = build_encoder(build_llava(template))
    with pytest.raises(ValueError, match="many: the chat template does not write what the system says: 'be brief' is"):
        encoder.training_batch([many_images()])
    with pytest.raises(ValueError, match="many: the chat template does not write what the system says"):
        encoder.evaluation_batch([question(many_images())])


def test_a_template_that_drops_later_parts():
    template = chat_template().replace("{% for p in m['content'] %}", "{% for p in m['content'][:2] %}")
    with pytest.raises(ValueError, match="r: the chat template does not write what the user says: 'b' is"):
        row = Conversation("r", [turn("user", IMAGE, "a\n", "b"), turn("assistant", "c")], [picture()])
        build_encoder(build_llava(template)).training_batch([row])
