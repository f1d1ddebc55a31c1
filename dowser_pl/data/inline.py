"""Decoder-only models: question and answer are one text, and only what the assistant wrote has labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers
from transformers import BatchFeature

from dowser_pl.data.encoding import Batch, Encoder
from dowser_pl.data.labels import close_turns, mark_tokens, shift_spans
from dowser_pl.data.rows import Conversation, is_learnt
from dowser_pl.data.templates import Span
from dowser_pl.data.truncation import IGNORED


class InlineEncoder(Encoder):
    """Labels by the characters of the assistant's turns; see `Encoder` for the arguments."""

    def encode(self, rows: Sequence[Conversation]) -> Batch:
        """See `Encoder.encode`."""
        rendered = [self._render(row) for row in rows]
        texts = [text for text, _ in rendered]
        wanted = {"return_text_replacement_offsets": True} if self.replaces_placeholders else {}
        encoded = self.process(texts, rows, "right", return_offsets_mapping=True, **wanted)
        offsets = encoded.pop("offset_mapping")
        replacements = encoded.pop("text_replacement_offsets", None) or [[]] * len(rows)
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
            raise ValueError(
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

    def _check_replacements(self, rows: Sequence[Conversation], replacements: Sequence[Sequence[object]]) -> None:
        """Fail closed: without knowing where images grew the text, the wrong tokens would be learnt."""
        for row, found in zip(rows, replacements, strict=True):
            if self.replaces_placeholders and len(found) != len(row.images):
                raise ValueError(
                    f"{row.id}: {type(self.processor).__name__} says where it put {len(found)} images, expected "
                    f"{len(row.images)}, so the assistant's tokens cannot be located. Update transformers (got "
                    f"{transformers.__version__}), or use another model."
                )


def _learnt(row: Conversation, spans: list[Span]) -> list[Span]:
    """The spans of the answers that carry loss.

    Raises:
        ValueError: some do not, and the template does not mark one piece of text per answer.
    """
    learnt = [is_learnt(message) for message in row.messages if message["role"] == "assistant"]
    if all(learnt):
        return spans
    if len(spans) != len(learnt):
        raise ValueError(
            f"{row.id}: {learnt.count(False)} of {len(learnt)} answers are not to be learnt, but the chat template "
            f"marks {len(spans)} pieces of text as generated, expected one per answer. Put all that the assistant says "
            "in a turn between one {% generation %} and {% endgeneration %}, or split the row."
        )
    return [span for span, is_on in zip(spans, learnt, strict=True) if is_on]
