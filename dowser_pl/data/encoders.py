"""Which encoder a processor needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from transformers import PaliGemmaProcessor, ProcessorMixin, T5Tokenizer

from dowser_pl.data.encoding import Encoder
from dowser_pl.data.inline import InlineEncoder
from dowser_pl.data.literal import LiteralWords
from dowser_pl.data.pairs import DecoderEncoder, SuffixEncoder
from dowser_pl.data.pixels import largest_image_tokens
from dowser_pl.data.templates import ChatTemplate, has_placeholders, own_template

TEXT_TOKENS = 2048
"""Room for text beside the largest image, in tokens, with `max_length: auto`."""

# Models that take question and answer apart were trained without a chat format: the images, then the words.
_PAIR_TEMPLATE = (
    "{{% for m in messages %}}{{% for p in m['content'] if p['type'] == 'image' %}}{image}{{% endfor %}}{{% endfor %}}"
    "{{% for m in messages %}}{{% for p in m['content'] if p['type'] == 'text' %}}{{{{ p['text'] }}}}{{% endfor %}}"
    "{{% if not loop.last %}}{{{{ ' ' }}}}{{% endif %}}{{% endfor %}}"
)


def build_encoder(
    processor: ProcessorMixin,
    template: str | None = None,
    max_length: int | Literal["auto"] | None = None,
    control_tokens: Sequence[str] = (),
) -> Encoder:
    """The encoder for a model's processor.

    Args:
        processor: of the model.
        template: Jinja text, path or "plain"; None = the model's own. Models that take the answer apart need none.
        max_length: tokens per training row, image tokens included; None = no limit; "auto" = those of the largest
            image that the processor makes and `TEXT_TOKENS`.
        control_tokens: that rows may write as such; all others in their words are read as words.

    Raises:
        ValueError: no chat template where one is needed, or a control token that is none.
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


def turn_ends(processor: ProcessorMixin, template: str | None = None) -> tuple[tuple[int, ...], str]:
    """What closes an assistant's turn: tokens, or where none does, the words; neither without a chat template.

    Args:
        processor: of the model.
        template: as for `build_encoder`.
    """
    if template is None and own_template(processor) is None and _kind(processor) is InlineEncoder:
        return (), ""
    return build_encoder(processor, template).turn_ends()


def _kind(processor: ProcessorMixin) -> type[Encoder]:
    if isinstance(processor, PaliGemmaProcessor):
        return SuffixEncoder
    return DecoderEncoder if isinstance(processor.tokenizer, T5Tokenizer) else InlineEncoder
