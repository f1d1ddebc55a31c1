"""Which tokens carry loss: equal to Hugging Face's own mask, with and without `{% generation %}`."""

import pytest
import torch

from dowser_pl.data.encoders import build_encoder
from dowser_pl.data.labels import close_turns, mark_tokens, shift_spans
from tests.data.builders import build_llava, chat_template, many_images, one_image, text_only

ROWS = {
    "one image": [one_image()],
    "several turns and images": [many_images()],
    "text only": [text_only()],
    "mixed batch": [one_image(), many_images(), text_only()],
}


def huggingface_mask(processor, rows):
    """`return_assistant_tokens_mask` of the processor, on the same rows."""
    chats = []
    for row in rows:
        images = iter(row.images)
        chats.append(
            [
                {**m, "content": [{**p, "image": next(images)} if p["type"] == "image" else p for p in m["content"]]}
                for m in row.messages
            ]
        )
    encoded = processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "right"},
    )
    return encoded["input_ids"], encoded["assistant_masks"].bool()


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_labels_equal_huggingfaces_mask(rows):
    processor = build_llava(chat_template())
    ids, mask = huggingface_mask(processor, rows)
    batch, _ = build_encoder(processor).training_batch(rows)
    assert torch.equal(batch["input_ids"], ids)
    assert torch.equal(batch["labels"] != -100, mask)
    assert mask.any(dim=1).all()


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("inside", [True, False], ids=["end inside", "end outside"])
def test_a_template_without_generation_gives_the_same_labels(rows, inside):
    with_tags, _ = build_encoder(build_llava(chat_template(inside=inside))).training_batch(rows)
    without, _ = build_encoder(build_llava(chat_template(generation=False, inside=inside))).training_batch(rows)
    assert torch.equal(with_tags["input_ids"], without["input_ids"])
    assert torch.equal(with_tags["labels"], without["labels"])


def test_labels_are_the_answers_and_their_end():
    processor = build_llava(chat_template(generation=False))
    batch, _ = build_encoder(processor).training_batch([one_image(), many_images()])
    said = [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert said == [": red</s>", ": green</s>: blue red</s>"]  # ": " is one token, half of it the assistant's


@pytest.mark.parametrize("generation", [True, False])
def test_an_end_of_turn_is_added_where_the_template_has_none(generation):
    processor = build_llava(chat_template(generation, end=""))
    batch, _ = build_encoder(processor).training_batch([many_images()])
    said = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
    assert said == ": green</s>: blue red</s>"
    assert processor.tokenizer.decode(batch["input_ids"][0]).endswith("ASSISTANT: blue red</s>\n")


def test_a_token_across_the_edge_of_a_turn_counts():
    """ ":blue" is one token of this vocabulary, and ":" belongs to the template."""
    template = chat_template(generation=False, end="").replace("{{ ' ' }}", "")
    processor = build_llava(template)
    row = one_image()
    row.messages[-1]["content"][0]["text"] = "blue"
    batch, _ = build_encoder(processor).training_batch([row])
    tokens = processor.tokenizer.convert_ids_to_tokens(batch["labels"][0][batch["labels"][0] != -100].tolist())
    assert tokens == [":blue", "</s>"]


def test_close_turns_moves_later_spans():
    text = "Q A: one \nQ A: two \n"
    closed, spans = close_turns(text, [(5, 9), (15, 19)], "two", "</s>")
    assert closed == "Q A: one</s> \nQ A: two</s> \n"
    assert [closed[a:b] for a, b in spans] == ["one</s>", "two</s>"]


def test_close_turns_takes_plain_text_ends_too():
    text = "Q### A: one### Q### A: two###\n"
    _, spans = close_turns(text, [(8, 11), (23, 26)], "two", "</s>")
    assert [text[a:b] for a, b in spans] == ["one###", "two###"]
    assert close_turns(text, spans, "two", "</s>") == (text, spans)  # as found without `{% generation %}`


def test_shift_spans_refuses_a_processor_that_edits_text():
    moved = [{"span": (3, 10), "new_span": (3, 31), "text": "<image>"}]
    assert shift_spans("ab <image> cd", [(11, 13)], [{**moved[0]}], "row 1") == [(32, 34)]
    with pytest.raises(ValueError, match="row 1: the processor edits the text"):
        shift_spans("<image> ab cd", [(11, 13)], moved, "row 1")


def test_mark_tokens_leaves_out_empty_tokens():
    offsets = [(0, 0), (0, 2), (2, 4), (3, 3), (4, 6), (0, 0)]
    assert mark_tokens(offsets, [(3, 5)]).tolist() == [False, False, True, False, True, False]
