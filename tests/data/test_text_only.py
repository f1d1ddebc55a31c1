"""Rows for a model of text alone, which a tokenizer encodes: labels, templates, control tokens; images are refused."""

import json

import pytest
import torch

from dowser_pl.data import Conversation, ConversationData, MultimodalData, Question, Task, TaskFile
from dowser_pl.data.encoders import TEXT_TOKENS, build_encoder, limit_pixels, turn_ends
from dowser_pl.data.templates import ChatTemplate
from tests.data.builders import (
    build_llava,
    build_tokenizer,
    chat_template,
    one_image,
    picture,
    question,
    text_only,
    turn,
)

# Turns as texts, as most language models have them: one that marks what is generated, one that does not, one that is
# strict about roles.
CHATML = (
    "{% for m in messages %}{{ '<|vision_start|>' + m['role'] + '\n' }}"
    "GENERATION{{ m['content'] + '</s>' }}END{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|vision_start|>assistant\n' }}{% endif %}"
)
STRICT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{% for m in messages %}{{ '<boi>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' }}"
    "GENERATION{{ m['content'] | trim + '<eoi>' }}END{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<boi>model\n' }}{% endif %}"
)


def template_of(text: str, generation: bool) -> str:
    start = "{% if m['role'] == 'assistant' %}{% generation %}"
    marked = start + "WORDS{% endgeneration %}{% else %}WORDS{% endif %}"
    before, _, rest = text.partition("GENERATION")
    words, _, after = rest.partition("END")
    return before + (marked.replace("WORDS", words) if generation else words) + after


def tokenizer_with(template: str | None):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def several() -> Conversation:
    answers = [turn("assistant", "green", " red"), turn("assistant", "blue")]
    return Conversation("several", [turn("user", "what", " is it?"), answers[0], turn("user", "and?"), answers[1]])


ROWS = [text_only(), several()]


def huggingface_mask(tokenizer, rows, joined):
    chats = [
        [{**m, "content": "".join(p["text"] for p in m["content"]) if joined else m["content"]} for m in row.messages]
        for row in rows
    ]
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True, "return_tensors": "pt"}
    encoded = tokenizer.apply_chat_template(chats, padding=True, **options)
    return encoded["input_ids"], torch.as_tensor(encoded["assistant_masks"]).bool()


@pytest.mark.parametrize("style", ["chatml", "strict", "parts"])
@pytest.mark.parametrize("generation", [True, False])
def test_labels_equal_huggingfaces_mask(style, generation):
    """Whether the template takes a turn as a text or as parts."""
    if style == "parts":
        marked, own = chat_template(), chat_template(generation)
    else:
        marked, own = (template_of({"chatml": CHATML, "strict": STRICT}[style], g) for g in (True, generation))
    ids, mask = huggingface_mask(tokenizer_with(marked), ROWS, style != "parts")
    batch, cut = build_encoder(tokenizer_with(own)).training_batch(ROWS)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "ids"} and cut == [False, False]
    assert torch.equal(batch["input_ids"], ids)
    assert torch.equal(batch["labels"] != -100, mask) and mask.any(dim=1).all()
    assert torch.equal(batch["labels"][mask], ids[mask])


def test_rows_are_those_of_a_processor_with_the_same_tokenizer():
    """Though it may name an image token, as the tokenizers of many multimodal models do."""
    template = chat_template()
    mine, its = (build_encoder(each) for each in (tokenizer_with(template), build_llava(template)))
    for name, tensor in mine.training_batch(ROWS)[0].items():
        other = its.training_batch(ROWS)[0][name]
        assert torch.equal(tensor, other) if isinstance(tensor, torch.Tensor) else tensor == other
    asked = [mine.evaluation_batch([question(row) for row in ROWS]), its.evaluation_batch([question(r) for r in ROWS])]
    assert set(asked[0]["inputs"]) == {"input_ids", "attention_mask"}
    assert all(torch.equal(asked[0]["inputs"][name], asked[1]["inputs"][name]) for name in asked[0]["inputs"])
    assert turn_ends(tokenizer_with(template)) == turn_ends(build_llava(template)) != ((), "")
    assert ChatTemplate(tokenizer_with(template)).openers() == (
        *ChatTemplate(build_llava(template)).openers()[:2],
        None,
    )


def test_questions_end_where_the_assistant_starts():
    tokenizer = tokenizer_with(template_of(STRICT, False))
    inputs = build_encoder(tokenizer).evaluation_batch([question(row) for row in ROWS])["inputs"]
    texts = tokenizer.batch_decode(inputs["input_ids"])
    assert all(text.endswith("<boi>model\n") for text in texts) and texts[0].startswith("<pad>")
    assert [text.count("<s>") for text in texts] == [1, 1], "which the template has written"
    ends, words = turn_ends(tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(ends)) == ["<eoi>"] and not words


def test_without_a_template_one_is_asked_for_and_plain_is_words_line_by_line():
    with pytest.raises(ValueError, match=r"has no chat template. Set `chat_template`, of data or"):
        build_encoder(tokenizer_with(None))
    assert turn_ends(tokenizer_with(None)) == ((), "")
    encoder = build_encoder(tokenizer_with(None), "plain")
    batch, _ = encoder.training_batch([text_only()])
    assert encoder.tokenizer.decode(batch["input_ids"][0]) == "hello\nno</s>"
    assert encoder.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100]) == "no</s>"


@pytest.mark.filterwarnings("ignore:.*which is a control token of this model:UserWarning")
def test_control_tokens_in_words_are_words():
    """An image token too, which is no placeholder here."""
    encoder = build_encoder(tokenizer_with(template_of(CHATML, False)))
    said = "the </s> and <image> of it"
    row = Conversation("row", [turn("user", said), turn("assistant", said)])
    ids = encoder.training_batch([row])[0]["input_ids"][0]
    tokenizer = encoder.tokenizer
    assert tokenizer.decode(ids).count("</s> and <image> of") == 2
    assert ids.tolist().count(tokenizer.eos_token_id) == 2, "one behind each turn"
    assert tokenizer.convert_tokens_to_ids("<image>") not in ids


def test_texts_and_candidates():
    encoder = build_encoder(tokenizer_with(template_of(CHATML, False)))
    choice = Question("choice", [turn("user", "what?")], [], ["red"], candidates=["red", "green"])
    text = Question("text", [], [], ["red green"], candidates=["red green"])
    first, second = encoder.evaluation_batch([choice, text])["inputs"]
    assert first["labels"].shape[0] == 2 and second["labels"].shape[0] == 1
    assert encoder.tokenizer.decode(second["labels"][0]) == "red green"


def test_settings_of_images():
    tokenizer = tokenizer_with(template_of(CHATML, False))
    with pytest.raises(ValueError, match=r"min_pixels: got 3, but TokenizersBackend does not resize images"):
        limit_pixels(tokenizer, 3, None)
    assert build_encoder(tokenizer, max_length="auto").max_length == TEXT_TOKENS


NO_IMAGES = r"got 1 image or <image> in the text, expected none: the model reads text alone \(TokenizersBackend\)"


def test_an_image_is_refused():
    encoder = build_encoder(tokenizer_with(chat_template()))
    for encode, given in ((encoder.training_batch, one_image()), (encoder.evaluation_batch, question(one_image()))):
        with pytest.raises(ValueError, match=f"^one: {NO_IMAGES}"):
            encode([given])


class Mine(MultimodalData):
    def __init__(self, rows):
        super().__init__(batch_size=2)
        self.rows, self.processor = rows, tokenizer_with(chat_template())

    def train_conversations(self):
        return self.rows

    def evaluation_tasks(self):
        return [Task("t", "downstream", "exact_match", [question(text_only())])]


def test_an_image_in_rows_of_ones_own_is_refused_in_setup():
    data = Mine([text_only()] * 40)
    data.setup("fit")
    assert "pixel_values" not in next(iter(data.train_dataloader()))
    with pytest.raises(ValueError, match=f"^one: {NO_IMAGES}"):
        Mine([*[text_only()] * 40, one_image()]).setup("fit")


@pytest.fixture
def files(tmp_path):
    """JSONL as people have it; an image in the last of more rows than are encoded at once."""
    picture().save(tmp_path / "red.png")
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "red"}]
    rows = [
        {"id": number, "conversations": [{**turns[0], "value": f"what {number}?"}, turns[1]]} for number in range(99)
    ]
    tasks = [{"question": f"is it {number}?", "answer": "no"} for number in range(99)]
    for name, content in {"train": rows, "task": tasks}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        (tmp_path / f"{name}_image.jsonl").write_text(
            "".join(json.dumps(row | ({"image": "red.png"} if row is content[98] else {})) + "\n" for row in content)
        )
    return tmp_path


def build(files, train="train", task="task", **options):
    task_file = TaskFile("t", str(files / f"{task}.jsonl"), role="downstream")
    data = ConversationData(str(files / f"{train}.jsonl"), tasks=[task_file], batch_size=2, **options)
    data.processor = tokenizer_with(template_of(CHATML, False))
    return data


def test_files_without_images(files):
    data = build(files)
    data.setup("fit")
    assert len(data.train_dataloader()) == 50 and len(data.val_dataloader()[0].dataset.questions) == 99


@pytest.mark.parametrize("names", [("train_image", "task"), ("train", "task_image")])
def test_an_image_in_any_row_of_a_file_is_refused_in_setup(files, names):
    with pytest.raises(ValueError, match=rf"\.jsonl (row|line) .*: {NO_IMAGES}"):
        build(files, *names).setup("fit")


@pytest.mark.filterwarnings("ignore:left out:UserWarning")
def test_rows_with_images_may_be_left_out(files):
    data = build(files, "train_image", "task_image", skip_bad_rows=True)
    data.setup("fit")
    assert data.num_unreadable == 1 and data.tasks[0].left_out == 1


def test_a_place_for_an_image_is_refused(files):
    rows = (files / "train.jsonl").read_text().replace("what 98?", "<image> what 98?")
    (files / "train.jsonl").write_text(rows)
    with pytest.raises(ValueError, match=NO_IMAGES):
        build(files).setup("fit")
