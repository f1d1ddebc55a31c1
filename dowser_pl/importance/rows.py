"""Rows that the model writes itself, by what they are written after: words, a turn of the user, or a picture.

Every row has random streams of its own, fixed by seed, source, number and try, so it depends neither on its
neighbours in a batch nor on the number of processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from PIL import Image
from transformers import PreTrainedModel

from dowser_pl.errors import DowserError
from dowser_pl.functional.degenerate import is_degenerate
from dowser_pl.functional.random_streams import stream
from dowser_pl.importance.pictures import MADE_OF_PICTURES, PICTURES
from dowser_pl.importance.prompts import Prompt, TextInputs, plain_text
from dowser_pl.importance.writing import RowWriter, Start, token_ids
from dowser_pl.models.generation import Ending, own_ends

__all__ = ["Bank", "Openers", "Rows", "Source", "write_rows"]

Source = Literal["text", "chat", "turn", "noise", "blank", "train", "shuffle", "mosaic"]
_SOURCES = ("text", "chat", "turn", *PICTURES, *MADE_OF_PICTURES)
_PREFIX, _TURN = (1, 5), (5, 14)  # fewest and most random tokens after BOS, and tokens of a user part
_TRIES = 4  # after a picture, the second half of them with a user part written without it


@dataclass(frozen=True)
class Openers:
    """What a chat template writes around the words of a user.

    Attributes:
        user: text before the words of a user, the beginning of the conversation included.
        assistant: text between the words of a user and those of the assistant.
        picture: text before the words of a user who shows a picture first; None = the start of a text and a picture.
    """

    user: str
    assistant: str
    picture: str | None = None


@dataclass(frozen=True)
class Rows:
    """Which rows the model writes.

    Args:
        sources: how many rows of each source.
        num_tokens: most tokens that are written after what a row starts with.
        temperature: of the sampling.
        held_out: share of every source that is kept for measuring.
        batch_size: rows with pictures that are written together; changes memory and speed, not the result.
        seed: of prefixes, pictures and sampling.
    """

    sources: Mapping[str, int] = field(default_factory=lambda: {"text": 512, "chat": 512, "turn": 512})
    num_tokens: int = 32
    temperature: float = 1.0
    held_out: float = 0.1
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.sources) - set(_SOURCES):
            raise DowserError(f"rows.sources: got {sorted(unknown)}, expected some of {', '.join(_SOURCES)}")
        if not self.sources or min(self.sources.values()) < 1:
            raise DowserError(f"rows.sources needs at least one row of each source, got {dict(self.sources)}")
        if self.num_tokens < 1 or self.batch_size < 1 or not self.temperature > 0 or not 0 <= self.held_out < 1:
            raise DowserError(
                "rows.num_tokens and batch_size must be at least 1, temperature above 0 and held_out in [0, 1); got "
                f"{self.num_tokens}, {self.batch_size}, {self.temperature} and {self.held_out}"
            )

    def identity(self) -> dict[str, object]:
        """What rows depend on, for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "batch_size"}

    def is_held_out(self, number: int) -> bool:
        """Whether row `number` of a source is kept for measuring; the same however many rows there are."""
        return int((number + 1) * self.held_out + 1e-9) > int(number * self.held_out + 1e-9)


@dataclass(frozen=True)
class Bank:
    """Rows by source.

    Attributes:
        used: rows to work with.
        held_out: rows to measure with, never worked with.
        dropped: how many rows of a source stayed degenerate in every try.
    """

    used: dict[str, list[Prompt]]
    held_out: dict[str, list[Prompt]]
    dropped: dict[str, int]


def write_rows(
    model: PreTrainedModel,
    processor: Any,
    settings: Rows,
    openers: Openers | None = None,
    pictures: Sequence[Image.Image] = (),
    text_inputs: TextInputs = plain_text,
    ending: Ending | None = None,
) -> Bank:
    """Let the model write rows of every source.

    Every process must call it, and gets all rows. A row that is degenerate is written again from its next streams.

    Args:
        model: decoder with `generate`, in eval mode.
        processor: Hugging Face processor, or a tokenizer where no source has a picture.
        settings: sources, lengths, seed.
        openers: of the chat template; `chat` and `turn` need them.
        pictures: of the user, any sizes; `train`, `shuffle` and `mosaic` need them.
        text_inputs: what the model takes for tokens and their mask.
        ending: what ends a text; None = the model's own end tokens.

    Raises:
        DowserError: a source lacks what it needs, the model is an encoder-decoder, or all rows of one are degenerate.
    """
    _check(model, processor, settings, openers, pictures)
    tokenizer = getattr(processor, "tokenizer", processor)
    ending = Ending(own_ends(model, tokenizer)) if ending is None else ending
    writer = RowWriter(model, processor, settings.temperature, settings.batch_size, text_inputs, ending)
    bank = Bank({}, {}, {})
    for source, count in settings.sources.items():
        rows = _Rows(writer, settings, openers, pictures, source).write(count)
        if not rows:
            raise DowserError(
                f"all {count} rows that the model wrote after {source!r} are empty or repeat themselves, in {_TRIES} "
                f"tries each; leave {source!r} out of rows.sources, or raise rows.temperature"
            )
        bank.used[source] = [row for number, row in rows.items() if not settings.is_held_out(number)]
        bank.held_out[source] = [row for number, row in rows.items() if settings.is_held_out(number)]
        bank.dropped[source] = count - len(rows)
    return bank


@dataclass(frozen=True)
class _Rows:
    """The rows of one source."""

    writer: RowWriter
    settings: Rows
    openers: Openers | None
    pictures: Sequence[Image.Image]
    source: str

    def write(self, count: int) -> dict[int, Prompt]:
        """Number -> row, in order; those that stay degenerate are missing."""
        rows: dict[int, Prompt] = {}
        for attempt in range(_TRIES):
            missing = [number for number in range(count) if number not in rows]
            starts = self._starts(missing, attempt)
            streams = [self._stream("sample", number, attempt) for number in missing]
            written = self.writer.write(starts, streams, self.settings.num_tokens)
            for number, start, tokens in zip(missing, starts, written, strict=True):
                if not is_degenerate(self.writer.without_end(tokens)):
                    rows[number] = self.writer.prompt(start, tokens, self.source)
        return dict(sorted(rows.items()))

    def _starts(self, numbers: list[int], attempt: int) -> list[Start]:
        if self.source == "text":
            return [self._words(number, attempt) for number in numbers]
        if self.source == "chat":
            return [self._opener()] * len(numbers)
        if self.source == "turn":
            return self._with_turns([self._opener()] * len(numbers), numbers, attempt)
        starts = [self._picture(number) for number in numbers]
        helped = self.openers is not None and attempt >= _TRIES // 2
        return self._with_turns(starts, numbers, attempt) if helped else starts

    def _with_turns(self, starts: list[Start], numbers: list[int], attempt: int) -> list[Start]:
        """Behind each start a user part that is written without a picture, and the assistant's opener."""
        assert self.openers is not None
        streams = [self._stream("user", number, attempt) for number in numbers]
        lengths = [int(torch.randint(_TURN[0], _TURN[1] + 1, (), generator=each)) for each in streams]
        parts = self.writer.write([self._opener()] * len(numbers), streams, _TURN[1])
        answer = token_ids(self.writer.tokenizer, self.openers.assistant, False)
        return [
            start.followed_by(self.writer.without_end(part)[:length], answer)
            for start, part, length in zip(starts, parts, lengths, strict=True)
        ]

    def _words(self, number: int, attempt: int) -> Start:
        generator = self._stream("prefix", number, attempt)
        count = int(torch.randint(_PREFIX[0], _PREFIX[1] + 1, (), generator=generator))
        ordinary = self.writer.ordinary
        bos = self.writer.tokenizer.bos_token_id
        first = torch.tensor([] if bos is None else [bos], dtype=torch.int64)
        return Start(torch.cat([first, ordinary[torch.randint(len(ordinary), (count,), generator=generator)]]))

    def _opener(self) -> Start:
        assert self.openers is not None
        return Start(token_ids(self.writer.tokenizer, self.openers.user, True))

    def _picture(self, number: int) -> Start:
        generator = self._stream("picture", number, 0)  # the same picture in every try
        if self.source in PICTURES:
            picture = PICTURES[self.source](generator, self.writer.side)
        else:
            picture = MADE_OF_PICTURES[self.source](generator, self.pictures)
        return self.writer.start_with(picture, None if self.openers is None else self.openers.picture)

    def _stream(self, use: str, number: int, attempt: int) -> torch.Generator:
        return stream(self.settings.seed, "rows", use, self.source, number, attempt)


def _check(
    model: PreTrainedModel, processor: Any, settings: Rows, openers: Openers | None, pictures: Sequence[Image.Image]
) -> None:
    """Refuse sources that lack what they need, before anything is written."""
    asked = set(settings.sources)
    if model.config.is_encoder_decoder:
        raise DowserError(f"rows are written by decoders alone, got the encoder-decoder {type(model).__name__}")
    if openers is None and (needy := asked & {"chat", "turn"}):
        raise DowserError(f"the rows {sorted(needy)} need a chat template; give one, or leave them out of rows.sources")
    if not pictures and (needy := asked & set(MADE_OF_PICTURES)):
        raise DowserError(f"the rows {sorted(needy)} need training pictures, got none; leave them out of rows.sources")
    token = getattr(processor, "image_token", None)  # some tokenizers have one too
    places = isinstance(token, str) and hasattr(processor, "image_processor")
    if not places and (needy := asked & {*PICTURES, *MADE_OF_PICTURES}):
        raise DowserError(
            f"{type(processor).__name__} has no image token, so the rows {sorted(needy)} cannot place a picture; "
            "leave them out of rows.sources"
        )
