"""Rows to batches: the processor does the tokenizing, the image work and the padding; this file says what is learnt.

This is the part that all models share; where the answer goes differs, see `encoders.py`. Long rows lose text at their
end, and never an image token: the model would not know where to put the image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, TypeVar

import torch
from PIL import Image

from dowser_pl.data.images import open_image
from dowser_pl.data.literal import LiteralWords
from dowser_pl.data.rows import Conversation, Message, Question, answered, no_images
from dowser_pl.data.templates import ChatTemplate, has_placeholders
from dowser_pl.errors import DowserError, FileError
from dowser_pl.models.text_only import Processor, reads_images, tokenizer_of

IGNORED = -100
_PER_TOKEN = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask", "labels"}


def truncate(batch: dict[str, Any], is_image: torch.Tensor, max_length: int | None, ids: Sequence[str]) -> list[bool]:
    """Drop the columns beyond `max_length`, in place; they are text or padding, because padding is on the right.

    An encoder-decoder has labels of their own length, to which the limit applies too.

    Args:
        batch: of B right-padded rows of T tokens, with `labels`.
        is_image: (B, T) bool, the image tokens.
        max_length: the limit; None = no limit.
        ids: of the rows, for the message.

    Returns:
        Per row, whether it lost text.

    Raises:
        DowserError: a row has image tokens beyond the limit.
    """
    keys = _PER_TOKEN & batch.keys()
    if max_length is None or all(batch[key].shape[1] <= max_length for key in keys):
        return [False] * len(ids)
    for row, images in zip(ids, is_image, strict=True):
        if images[max_length:].any():
            raise DowserError(
                f"{row}: its {int(images.sum())} image tokens end at token {int(images.nonzero()[-1]) + 1}, beyond "
                f"max_length={max_length}. Image tokens are never cut: raise max_length, use fewer or smaller images, "
                "or put the images first."
            )
    lost = batch["attention_mask"].sum(dim=1) > max_length
    lost |= (batch["labels"][:, max_length:] != IGNORED).any(dim=1)
    for key in keys:
        batch[key] = batch[key][:, :max_length]
    return [bool(row) for row in lost]


Batch = dict[str, Any]
AnyRow = TypeVar("AnyRow", Conversation, Question)
Encoded = TypeVar("Encoded")


class Encoder(ABC):
    """Rows -> batches for one processor.

    Args:
        processor: of the model that is trained.
        template: how messages become text.
        max_length: tokens per training row, image tokens included; None = no limit.
    """

    def __init__(self, processor: Processor, template: ChatTemplate, max_length: int | None) -> None:
        self.processor: Any = processor  # its parts differ from family to family
        self.tokenizer = tokenizer_of(processor)
        self.template = template
        self.words = LiteralWords(processor)
        self.max_length = max_length
        self.reads_images = reads_images(processor)
        token = getattr(processor, "image_token", None) if self.reads_images else None
        self.image_token = None if token is None else str(token)
        self.replaces_placeholders = has_placeholders(processor)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # masked everywhere, so any token will do

    @abstractmethod
    def encode(self, rows: Sequence[Conversation]) -> Batch:
        """What the model's `forward` takes, right-padded, at full length."""

    def turn_ends(self) -> tuple[tuple[int, ...], str]:
        """The tokens with which an assistant's turn is closed and, where none is, the words; see `InlineEncoder`.

        Here neither: the answer is given apart, and the processor closes it with the tokenizer's own end token.
        """
        return (), ""

    def training_batch(self, rows: Sequence[Conversation]) -> tuple[Batch, list[bool]]:
        """What the model's `forward` takes (right-padded, at most `max_length`), plus `ids`; and which rows were cut.

        Raises:
            DowserError: names the row that anything refuses: image count, unreadable image, no assistant turn, too
                long, or whatever the processor or the chat template says.
        """
        return _naming(self._training_batch, rows)

    def evaluation_batch(self, questions: Sequence[Question]) -> Batch:
        """`inputs` for `generate` (left-padded, ending where the assistant starts), `references` and `ids`.

        Questions with `candidates` come with these; `inputs` then lists what `forward` takes: every candidate behind
        its question, in order, in batches of at most as many rows as there are questions.

        Raises:
            DowserError: names the question that anything refuses.
        """
        return _naming(self._evaluation_batch, questions)

    @abstractmethod
    def encode_texts(self, rows: Sequence[Conversation]) -> Batch:
        """Encode texts that answer nothing, as `encode` does: no question, no chat template, all tokens targets."""

    def _training_batch(self, rows: Sequence[Conversation]) -> tuple[Batch, list[bool]]:
        batch = self.encode(rows)
        ids = [row.id for row in rows]
        cut = truncate(batch, self.image_positions(batch["input_ids"]), self.max_length, ids)
        lost = (batch["labels"] == IGNORED).all(dim=1).tolist()
        if any(lost):
            raise DowserError(
                f"{ids[lost.index(True)]}: no token of the assistant's turns is left to learn from, with "
                f"max_length={self.max_length}. Raise max_length or shorten the row; `skip_bad_rows: true` leaves "
                "such rows out."
            )
        return {**batch, "ids": ids}, cut

    def _evaluation_batch(self, questions: Sequence[Question]) -> Batch:
        of_each = {
            "references": [question.references for question in questions],
            "ids": [question.id for question in questions],
            "told": [question.told() for question in questions],
        }
        candidates = [question.candidates for question in questions]
        if any(candidates):
            return {"inputs": self._with_candidates(questions), "candidates": candidates, **of_each}
        texts = [self.prompt(question, question.messages) for question in questions]
        inputs = self.process(texts, questions, "left", return_tensors="pt")
        inputs.pop("labels", None)  # PaliGemma's processor always writes some
        self.set_qformer(inputs, texts)
        return {"inputs": inputs, **of_each}

    def _with_candidates(self, questions: Sequence[Question]) -> list[Batch]:
        rows, size = [answered(each, text) for each in questions for text in each.candidates], len(questions)
        kinds = [list(alike) for _, alike in groupby(rows, key=lambda row: len(row.messages) > 1)]
        parts = [alike[start : start + size] for alike in kinds for start in range(0, len(alike), size)]
        return [(self.encode if len(part[0].messages) > 1 else self.encode_texts)(part) for part in parts]

    def prompt(self, row: Conversation | Question, messages: Sequence[Message]) -> str:
        """The text of the first messages of a row, up to where the assistant would start to speak; checked."""
        asked = self.words.hide(row.id, messages)
        text = self.template.render(asked, prompt=True)
        self.check_words(row.id, asked, text)
        self.check_images(row, text)
        return text

    def process(self, texts: list[str], rows: Sequence[Conversation | Question], side: str, **options: Any) -> Batch:
        """Run the processor on `texts` with the images of `rows`; `side` is that of the padding."""
        if self.reads_images:
            options["images"] = self.arrange([[open_image(source, row.id) for source in row.images] for row in rows])
        else:
            options["return_token_type_ids"] = False  # models of text alone take none
        bos = self.tokenizer.bos_token
        encoded = self.words.processor_for(*texts, *options.get("suffix", ()))(
            text=list(texts),
            padding=True,
            padding_side=side,
            add_special_tokens=not (bos and texts[0].startswith(bos)),  # unless the template has written it
            **options,
        )
        return dict(encoded)

    def arrange(self, images: list[list[Image.Image]]) -> Any:
        """Images per row -> what the processor takes: None without any, else nested lists."""
        return images if any(images) else None

    def check_words(self, row: str, messages: Sequence[Message], text: str) -> None:
        """Raise ValueError unless `text` has all that is said to the assistant; some templates drop system turns."""
        for message in messages:
            for part in message["content"] if message["role"] != "assistant" else []:
                if part.get("text", "").strip() not in text:
                    raise DowserError(
                        f"{row}: the chat template does not write what the {message['role']} says: "
                        f"{part['text'][:60]!r} is not in its text {text[:200]!r}. Give a `chat_template` that does, "
                        f"or leave out what the {message['role']} says."
                    )

    def check_images(self, row: Conversation | Question, text: str) -> None:
        """Raise ValueError unless messages, placeholders in the rendered text, and images agree in number."""
        parts = sum(part["type"] == "image" for message in row.messages for part in message["content"])
        if parts != len(row.images):
            raise DowserError(
                f"{row.id}: got {len(row.images)} images, expected {parts}: one per image part (<image>)."
            )
        if not self.reads_images:
            if parts:
                raise DowserError(f"{row.id}: {no_images(parts, type(self.processor).__name__)}")
            return
        if not self.replaces_placeholders and parts != 1:
            raise DowserError(
                f"{row.id}: {type(self.processor).__name__} takes exactly one image per row, got {parts}. Remove the "
                "row, or use a model with image placeholders."
            )
        found = text.count(self.image_token) if self.image_token else parts
        expected = parts if self.replaces_placeholders else 0
        if found != expected:
            raise DowserError(
                f"{row.id}: got {len(row.images)} images but {found} placeholders {self.image_token!r} in the rendered "
                f"text, expected {expected}. The chat template does not write one per image."
            )

    def set_qformer(self, batch: Batch, prompts: list[str]) -> None:
        """InstructBLIP's Q-Former reads the instruction, never the answer, and is right-padded."""
        if "qformer_input_ids" in batch:
            tokenizer = self.words.processor_for(*prompts).qformer_tokenizer
            encoded = tokenizer(prompts, padding=True, padding_side="right", return_tensors="pt")
            if (longest := encoded["input_ids"].shape[1]) > tokenizer.model_max_length:
                raise DowserError(
                    f"the instruction has {longest} tokens for the Q-Former, expected {tokenizer.model_max_length} at "
                    "most. Shorten the question"
                )
            batch["qformer_input_ids"] = encoded["input_ids"]
            batch["qformer_attention_mask"] = encoded["attention_mask"]

    def image_positions(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) bool: where the model will put image features."""
        ids = list(getattr(self.processor, "image_token_ids", None) or []) if self.reads_images else []
        if self.image_token is not None:
            ids.append(self.tokenizer.convert_tokens_to_ids(self.image_token))
        return torch.isin(input_ids, torch.tensor([i for i in ids if i is not None], dtype=input_ids.dtype))


def _naming(encode: Callable[[Sequence[AnyRow]], Encoded], rows: Sequence[AnyRow]) -> Encoded:
    """`encode(rows)`; what fails in it becomes a ValueError that begins with the name of the row.

    A processor says neither which row it refuses nor in one kind of exception, so the rows are tried one by one then.
    """
    try:
        return encode(rows)
    except (MemoryError, FileError):  # no fault of a row
        raise
    except Exception as error:
        ids = [row.id for row in rows]
        if isinstance(error, ValueError) and str(error).startswith(tuple(f"{name}: " for name in ids)):
            raise
        if len(rows) > 1:
            for row in rows:
                _naming(encode, [row])
        what = ", ".join(ids) if len(rows) == 1 else f"{', '.join(ids)} (together, while each alone is fine)"
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise DowserError(
            f"{what}: cannot be encoded: {kind}{error}. Change or remove the row; `skip_bad_rows: true` leaves such "
            "rows out and counts them."
        ) from error
