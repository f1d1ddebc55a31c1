"""Small processors, rows and templates for the tests of `dowser_pl.data`."""

from __future__ import annotations

from functools import cache

from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from dowser_pl.data import Conversation, Question

IMAGE = {"type": "image"}
SPECIALS = ["<image>", "<boi>", "<eoi>", "<fake_token_around_image>", "<global-img>", "<video>"]
SPECIALS += ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
SPECIALS += [f"<row_{row}_col_{col}>" for row in range(1, 4) for col in range(1, 4)]


@cache
def _trained() -> str:
    """A byte-level BPE vocabulary with tokens of up to six bytes that do not care where a word begins."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = ["USER: what colour is it?\nASSISTANT:", " red", " green", ":blue"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False, max_token_length=6)
    tokenizer.train_from_iterator(words * 20, trainer)
    return tokenizer.to_str()


def build_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=SPECIALS,
    )


def build_llava(template: str | dict[str, str] | None = None) -> LlavaProcessor:
    """16 x 16 images, four image tokens each."""
    size = {"height": 16, "width": 16}
    return LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size),
        build_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def chat_template(generation: bool = True, image: str = "<image>", end: str = "</s>", inside: bool = True) -> str:
    """USER: ... / ASSISTANT: ... in lines; `end` closes an assistant turn, inside or outside of the marked part."""
    start, stop = ("{% generation %}", "{% endgeneration %}") if generation else ("", "")
    close = end + stop if inside else stop + end
    return (
        "<s>{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'ASSISTANT:' }}" + start + "{{ ' ' }}"
        "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}" + close + "{% else %}{{ m['role'].upper() + ': ' }}"
        "{% for p in m['content'] %}{% if p['type'] == 'image' %}{{ '" + image + "\n' }}{% else %}{{ p['text'] }}"
        "{% endif %}{% endfor %}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )


def picture(colour: str = "red", size: tuple[int, int] = (20, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def turn(role: str, *content: str | dict[str, str]) -> dict:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else dict(part) for part in content]
    return {"role": role, "content": parts}


def one_image() -> Conversation:
    return Conversation("one", [turn("user", IMAGE, "what colour is it?"), turn("assistant", "red")], [picture()])


def many_images() -> Conversation:
    messages = [
        turn("system", "be brief"),
        turn("user", IMAGE, "what?", IMAGE),
        turn("assistant", "green"),
        turn("user", "and", IMAGE, "?"),
        turn("assistant", "blue red"),
    ]
    return Conversation("many", messages, [picture(), picture("blue", (40, 20)), picture("green")])


def text_only() -> Conversation:
    return Conversation("text", [turn("user", "hello"), turn("assistant", "no")], [])


def question(row: Conversation) -> Question:
    images = sum(part["type"] == "image" for message in row.messages[:-1] for part in message["content"])
    return Question(row.id, row.messages[:-1], row.images[:images], [row.messages[-1]["content"][0]["text"]])
