"""The encoder that a processor needs, and the pixels that it may keep of an image.

Decoder-only models take question and answer as one text, in which only what the assistant wrote has labels. Others take
the answer apart from the question: PaliGemma (as `suffix`) and encoder-decoders (T5). They know one question and one
answer, so a row must have exactly one assistant turn, the last one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
import transformers
from PIL import Image
from transformers import BatchFeature, PaliGemmaProcessor, T5Tokenizer

from dowser_pl.data.encoding import IGNORED, Batch, Encoder
from dowser_pl.data.labels import close_turns, mark_tokens, shift_spans
from dowser_pl.data.literal import LiteralWords
from dowser_pl.data.rows import Conversation, Question, is_learnt
from dowser_pl.data.templates import ChatTemplate, Span, has_placeholders, own_template
from dowser_pl.errors import DowserError
from dowser_pl.models.text_only import Processor, reads_images, tokenizer_of


class InlineEncoder(Encoder):
    """Labels by the characters of the assistant's turns; see `Encoder` for the arguments."""

    def encode(self, rows: Sequence[Conversation]) -> Batch:
        """Encode training rows as `Encoder.encode` says."""
        rendered = [self._render(row) for row in rows]
        texts = [text for text, _ in rendered]
        wanted = {"return_text_replacement_offsets": True} if self.replaces_placeholders else {}
        encoded = self.process(texts, rows, "right", return_offsets_mapping=True, **wanted)
        offsets = encoded.pop("offset_mapping")
        replacements = encoded.pop("text_replacement_offsets", None) or [[]] * len(rows)
        if "cross_attention_mask" in getattr(self.processor, "model_input_names", ()):
            self._check_unchanged(rows, texts)
        else:
            self._check_replacements(rows, replacements)
        marked = [
            mark_tokens(offset, shift_spans(text, _learnt(row, spans), replacement, row.id))
            for row, (text, spans), offset, replacement in zip(rows, rendered, offsets, replacements, strict=True)
        ]
        batch = dict(BatchFeature(encoded, tensor_type="pt"))
        input_ids = batch["input_ids"]
        learnt = torch.stack(marked) & ~self.image_positions(input_ids)
        batch["labels"] = input_ids.masked_fill(~learnt, IGNORED)
        self.set_qformer(batch, [text[: spans[0][0]] for text, spans in rendered])
        return batch

    def encode_texts(self, rows: Sequence[Conversation]) -> Batch:
        """Encode texts as `Encoder.encode_texts` says, with the tokens that the tokenizer itself puts around texts."""
        hidden = [self.words.hide(row.id, row.messages)[0]["content"][0]["text"] for row in rows]
        batch = self.process(hidden, rows, "right", return_tensors="pt")
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        return batch

    def turn_ends(self) -> tuple[tuple[int, ...], str]:
        """What the chat template writes behind an answer, whether more turns follow or not.

        Of each text it writes there the first token that is set apart from words counts. Where there is none behind
        the last answer but ordinary words, as decoded text; labels are on them too.
        """
        tokenizer = self.tokenizer
        apart = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        last, between = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in self.template.closings())
        firsts = [next((token for token in last if token in apart), None)]
        firsts.append(next((token for token in between if token in apart - {tokenizer.unk_token_id}), None))
        ends = tuple(dict.fromkeys(token for token in firsts if token is not None))
        words = str(tokenizer.decode(last, clean_up_tokenization_spaces=False)).strip()
        return ends, "" if firsts[0] is not None else words

    def _render(self, row: Conversation) -> tuple[str, list[Span]]:
        roles = [message["role"] for message in row.messages]
        if len(roles) < 2 or roles[0] == "assistant" or roles[-1] != "assistant":
            raise DowserError(
                f"{row.id}: a training row starts with a question and ends with an assistant turn, which is what is "
                f"learnt; got the turns {roles}."
            )
        messages = self.words.hide(row.id, row.messages)
        words = [part["text"] for part in messages[-1]["content"] if part["type"] == "text"]
        text, spans = self.template.render_spans(messages, row.id)
        learnt = [is_learnt(message) for message in row.messages if message["role"] == "assistant"]
        self.template.check_answers(messages, learnt, text, spans, row.id)
        text, spans = close_turns(text, spans, words[-1] if words else "", self.tokenizer.eos_token)
        self.check_words(row.id, messages, text)
        self.check_images(row, text)
        return text, spans

    def _check_unchanged(self, rows: Sequence[Conversation], texts: Sequence[str]) -> None:
        """Fail closed: what is read by cross-attention leaves the text as it is, if that has its first token."""
        begin = self.tokenizer.bos_token
        for row, text in zip(rows, texts, strict=True):
            if begin is not None and begin not in text:
                raise DowserError(
                    f"{row.id}: {type(self.processor).__name__} puts {begin!r} before a text that has none, so the "
                    f"assistant's tokens cannot be located. Use a chat template that writes {begin!r} itself."
                )

    def _check_replacements(self, rows: Sequence[Conversation], replacements: Sequence[Sequence[object]]) -> None:
        """Fail closed: without knowing where images grew the text, the wrong tokens would be learnt."""
        for row, found in zip(rows, replacements, strict=True):
            if self.replaces_placeholders and len(found) != len(row.images):
                raise DowserError(
                    f"{row.id}: {type(self.processor).__name__} says where it put {len(found)} images, expected "
                    f"{len(row.images)}, so the assistant's tokens cannot be located. Update transformers (got "
                    f"{transformers.__version__}), or use another model."
                )


def _learnt(row: Conversation, spans: list[Span]) -> list[Span]:
    """The spans of the answers that carry loss.

    Raises:
        DowserError: some do not, and the template does not mark one piece of text per answer.
    """
    learnt = [is_learnt(message) for message in row.messages if message["role"] == "assistant"]
    if all(learnt):
        return spans
    if len(spans) != len(learnt):
        raise DowserError(
            f"{row.id}: {learnt.count(False)} of {len(learnt)} answers are not to be learnt, but the chat template "
            f"marks {len(spans)} pieces of text as generated, expected one per answer. Put all that the assistant says "
            "in a turn between one {% generation %} and {% endgeneration %}, or split the row."
        )
    return [span for span, is_on in zip(spans, learnt, strict=True) if is_on]


class PairEncoder(Encoder):
    """Question and answer apart; see `Encoder` for the arguments."""

    def encode(self, rows: Sequence[Conversation]) -> Batch:
        """Encode training rows as `Encoder.encode` says."""
        prompts, answers = zip(*map(self._split, rows), strict=True)
        batch = self.encode_pairs(list(prompts), list(answers), rows)
        self.set_qformer(batch, list(prompts))
        return batch

    def encode_texts(self, rows: Sequence[Conversation]) -> Batch:
        """Refuse texts without a question."""
        raise DowserError(
            f"{rows[0].id}: {type(self.processor).__name__} takes question and answer apart, and this text has no "
            "question. Add one to each row of the task"
        )

    @abstractmethod
    def encode_pairs(self, prompts: list[str], answers: list[str], rows: Sequence[Conversation]) -> Batch:
        """The batch with its labels."""

    def _split(self, row: Conversation) -> tuple[str, str]:
        roles = [message["role"] for message in row.messages]
        if roles.count("assistant") != 1 or roles[-1] != "assistant":
            raise DowserError(
                f"{row.id}: {type(self.processor).__name__} takes one question and one answer per row, got the turns "
                f"{roles}. Split the row so that each part ends with its only assistant turn."
            )
        (answer,) = self.words.hide(row.id, row.messages[-1:])
        return self.prompt(row, row.messages[:-1]), "".join(
            part["text"] for part in answer["content"] if part["type"] == "text"
        )


class SuffixEncoder(PairEncoder):
    """Prefix language models (PaliGemma): the processor takes the answer as `suffix` and writes the labels itself."""

    def check_images(self, row: Conversation | Question, text: str) -> None:
        """Refuse rows without an image: the processor would put the start token in the wrong place."""
        super().check_images(row, text)
        if not row.images:
            raise DowserError(
                f"{row.id}: {type(self.processor).__name__} takes at least one image per row, got 0. Remove the row, "
                "or use a model that reads text alone."
            )

    def encode_pairs(self, prompts: list[str], answers: list[str], rows: Sequence[Conversation]) -> Batch:
        """Encode questions and answers as `PairEncoder.encode_pairs` says."""
        return self.process(prompts, rows, "right", suffix=answers, return_tensors="pt")


class DecoderEncoder(PairEncoder):
    """Encoder-decoders (InstructBLIP and BLIP-2 with T5): the answer is what the decoder says."""

    def encode_pairs(self, prompts: list[str], answers: list[str], rows: Sequence[Conversation]) -> Batch:
        """Encode questions and answers as `PairEncoder.encode_pairs` says."""
        batch = self.process(prompts, rows, "right", return_tensors="pt")
        said = self.words.processor_for(*answers).tokenizer(
            answers, padding=True, padding_side="right", return_tensors="pt"
        )
        batch["labels"] = said["input_ids"].masked_fill(said["attention_mask"] == 0, IGNORED)
        return batch


# (height, width) of images in which every known way of cutting them into tiles takes as many as it ever does
_LARGE = [(4096, 4096), (4096, 2048), (2048, 4096), (4096, 1024), (1024, 4096), (4096, 3072), (3072, 4096)]


def limit_pixels(processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Have the processor resize images to at least and at most so many pixels; None = as it was loaded.

    It is changed in place, so that the model is trained, evaluated and exported with one setting.

    Raises:
        DowserError: the processor does not resize to a number of pixels, or the numbers make no sense.
    """
    asked = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not asked:
        return
    images: Any = getattr(processor, "image_processor", None)
    if not _counts_pixels(images):
        name = type(images or processor).__name__
        raise DowserError(
            f"{' and '.join(asked)}: got {', '.join(map(str, asked.values()))}, but {name} does not resize images to a "
            "number of pixels (those of Qwen-VL do). Leave the settings out for this model."
        )
    changed = type(images).from_dict({**images.to_dict(), **asked})
    smallest, largest = _limits(changed)
    if not 0 < smallest <= largest:
        raise DowserError(
            f"min_pixels must be above 0 and at most max_pixels, got {smallest} and {largest} for "
            f"{type(images).__name__} (with its own setting where none was given)."
        )
    processor.image_processor = changed


def square_colour(processor: Any) -> tuple[int, ...] | None:
    """The colour with which pictures are padded to a square, so that a processor does not cut their margins off.

    That of LLaVA-1.5 cuts out the centre; it gets its own mean colour, as the original LLaVA pads. One that cuts a
    picture into tiles keeps all of it.

    Returns:
        RGB, 0 to 255; None for a processor that shows pictures whole.
    """
    images: Any = getattr(processor, "image_processor", None)
    cuts = getattr(images, "do_center_crop", None) and not getattr(images, "image_grid_pinpoints", None)
    return tuple(int(share * 255) for share in images.image_mean) if cuts else None


def largest_image_tokens(encoder: Encoder) -> int:
    """Tokens of the largest image that the processor makes of any; 0 of a model of text alone.

    Raises:
        DowserError: neither the processor says so nor can it be tried.
    """
    if not encoder.reads_images:
        return 0
    processor = encoder.processor
    images: Any = getattr(processor, "image_processor", None)
    if _counts_pixels(images) and hasattr(images, "merge_size"):
        return int(_limits(images)[1]) // (images.patch_size * images.merge_size) ** 2
    if hasattr(processor, "_get_num_multimodal_tokens"):
        told: Any = processor._get_num_multimodal_tokens(image_sizes=_LARGE)
        return max(told["num_image_tokens"])
    return _tried(encoder)


def _tried(encoder: Encoder) -> int:
    """Of one image, in models that have a fixed number."""
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    image = Image.new("RGB", (1024, 1024), "white")
    batch = encoder.evaluation_batch([Question("an image to measure", question, [image], [])])
    return int(encoder.image_positions(batch["inputs"]["input_ids"]).sum())


def _counts_pixels(images: Any) -> bool:
    known = getattr(getattr(images, "valid_kwargs", None), "__annotations__", {})
    return {"min_pixels", "max_pixels"} <= known.keys() and hasattr(images, "patch_size")


def _limits(images: Any) -> tuple[int, int]:
    size = images.size
    return size["shortest_edge"], size["longest_edge"]


TEXT_TOKENS = 2048
"""Room for text beside the largest image, in tokens, with `max_length: auto`."""

# Models that take question and answer apart were trained without a chat format: the images, then the words.
_PAIR_TEMPLATE = (
    "{{% for m in messages %}}{{% for p in m['content'] if p['type'] == 'image' %}}{image}{{% endfor %}}{{% endfor %}}"
    "{{% for m in messages %}}{{% for p in m['content'] if p['type'] == 'text' %}}{{{{ p['text'] }}}}{{% endfor %}}"
    "{{% if not loop.last %}}{{{{ ' ' }}}}{{% endif %}}{{% endfor %}}"
)


def build_encoder(
    processor: Processor,
    template: str | None = None,
    max_length: int | Literal["auto"] | None = None,
    control_tokens: Sequence[str] = (),
) -> Encoder:
    """The encoder for a model's processor.

    Args:
        processor: of the model, or its tokenizer.
        template: Jinja text, path or "plain"; None = the model's own. Models that take the answer apart need none.
        max_length: tokens per training row, image tokens included; None = no limit; "auto" = those of the largest
            image that the processor makes and `TEXT_TOKENS`.
        control_tokens: that rows may write as such; all others in their words are read as words.

    Raises:
        DowserError: no chat template where one is needed, or a control token that is none.
    """
    kind = _kind(processor)
    if kind is not InlineEncoder and template is None:
        image = getattr(processor, "image_token", "") if has_placeholders(processor) else ""
        template = _PAIR_TEMPLATE.format(image=image)
    encoder = kind(processor, ChatTemplate(processor, template), None if max_length == "auto" else max_length)
    if control_tokens:
        encoder.words = LiteralWords(processor, control_tokens)
    if max_length == "auto":
        encoder.max_length = largest_image_tokens(encoder) + TEXT_TOKENS
    return encoder


def turn_ends(processor: Processor, template: str | None = None) -> tuple[tuple[int, ...], str]:
    """What closes an assistant's turn: tokens, or where none does, the words; neither without a chat template.

    Args:
        processor: of the model.
        template: as for `build_encoder`.
    """
    if template is None and own_template(processor) is None and _kind(processor) is InlineEncoder:
        return (), ""
    return build_encoder(processor, template).turn_ends()


def _kind(processor: Processor) -> type[Encoder]:
    if not reads_images(processor):
        return InlineEncoder
    if isinstance(processor, PaliGemmaProcessor):
        return SuffixEncoder
    return DecoderEncoder if isinstance(tokenizer_of(processor), T5Tokenizer) else InlineEncoder
