"""Rows that the model writes itself, by what they are written after: words, a turn of the user, or a picture.

A row's random streams are fixed by seed, source, number and try; it knows neither neighbours nor processes.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from dowser_pl.distributed import collectives
from dowser_pl.errors import DowserError
from dowser_pl.functional.degenerate import is_degenerate
from dowser_pl.functional.random_streams import stream
from dowser_pl.importance.pictures import MADE_OF_PICTURES, PICTURES
from dowser_pl.importance.prompts import Prompt, counted
from dowser_pl.importance.settings import Rows, Source
from dowser_pl.importance.writing import Openers, RowWriter, Start, before, token_ids
from dowser_pl.models.generation import Ending
from dowser_pl.models.layers import text_inputs, text_model

__all__ = ["Writers"]

_SOURCES: tuple[Source, ...] = get_args(Source)
_WITH_PICTURE = (*PICTURES, *MADE_OF_PICTURES)
_BYTES, _FEWEST = 384 << 20, 2  # of all pictures of a source as the processor makes them, and rows in any case
_PREFIX, _TURN = (1, 5), (5, 14)  # fewest and most random tokens after BOS, and tokens of a user part
_EXAMPLES = 8  # rows whose sizes stand for those of all
_TRIES = 4  # after a picture, the second half of them with a user part written without it


@dataclass(frozen=True)
class Writers:
    """All that rows are made of beside the model's own words.

    Attributes:
        writer: continues starts.
        settings: of the rows.
        openers: of the chat template; None = it has none.
        pictures: of the user, any sizes; may be none.
    """

    writer: RowWriter
    settings: Rows
    openers: Openers | None
    pictures: Sequence[Image.Image]

    @classmethod
    def of(
        cls,
        network: PreTrainedModel,
        processor: Any,
        ending: Ending,
        settings: Rows,
        openers: tuple[str, str, str | None] | None,
        pictures: Sequence[Image.Image],
    ) -> "Writers":
        """Make the writers of a model.

        Args:
            network: in eval mode.
            processor: Hugging Face processor.
            ending: what ends a text.
            settings: of the rows.
            openers: of the chat template, as `ChatTemplate.openers` has them.
            pictures: of the user.
        """
        inputs = partial(text_inputs, text_model(network))
        writer = RowWriter(network, processor, settings.temperature, settings.batch_size, inputs, ending)
        return cls(writer, settings, None if openers is None else Openers(*openers), pictures)

    def sources(self) -> list[Source]:
        """The sources asked for; of `auto` those that there is what it takes for.

        Raises:
            DowserError: if one that is asked for lacks what it needs, or the model is an encoder-decoder.
        """
        if self.writer.model.config.is_encoder_decoder:
            raise DowserError(
                f"rows are written by decoders alone, got the encoder-decoder {type(self.writer.model).__name__}"
            )
        lacking = {source: why for source in _SOURCES if (why := self._lacks(source))}
        if self.settings.sources == "auto":
            return [source for source in _SOURCES if source not in lacking and source != "blank"]
        for source in self.settings.sources:
            if source in lacking:
                raise DowserError(f"rows of {source!r} need {lacking[source]}; leave it out of rows.sources")
        return list(self.settings.sources)

    def write(self, source: Source, numbers: Sequence[int]) -> list[Prompt]:
        """Rows of a source, in order; every process must call it, and gets all. Degenerate ones are tried anew."""
        rows: dict[int, Prompt] = {}
        for attempt in range(_TRIES):
            missing = [number for number in numbers if number not in rows]
            starts = self._starts(source, missing, attempt)
            streams = [self._stream("sample", source, number, attempt) for number in missing]
            written = self.writer.write(starts, streams, self.settings.num_tokens)
            for number, start, tokens in zip(missing, starts, written, strict=True):
                if not is_degenerate(self.writer.without_end(tokens)):
                    rows[number] = self.writer.prompt(start, tokens, source, number)
        return [rows[number] for number in numbers if number in rows]

    def in_turns(
        self, sources: Sequence[Source], numbers: Sequence[int], read: Callable[[list[Prompt]], object]
    ) -> list[Prompt]:
        """Rows of several sources, one of each after the other, so that the first few are of all; all must call it.

        Where `auto` chose a source with pictures that the model fails on, a warning says so, and others are written.

        Args:
            sources: of the rows.
            numbers: of the rows of each.
            read: runs the model on rows of one kind.

        Raises:
            DowserError: if all of them stay degenerate.
        """
        by_source = [self._readable(source, numbers, read) for source in sources]
        for source, rows in zip(sources, by_source, strict=True):
            if len(rows) < len(numbers) / 2 and collectives.rank() == 0:
                warnings.warn(
                    f"of {len(numbers)} rows after {source!r} the base wrote {len(numbers) - len(rows)} empty or "
                    "repeating itself in every try; they are left out",
                    stacklevel=2,
                )
        found = [row for row in chain(*zip_longest(*by_source)) if row is not None and bool(counted(row).any())]
        if not found:
            raise DowserError(
                f"all rows that the base wrote after {', '.join(sources)} are empty or repeat themselves; choose other "
                "rows.sources, or raise rows.temperature"
            )
        return found

    def _readable(self, source: Source, numbers: Sequence[int], read: Callable[[list[Prompt]], object]) -> list[Prompt]:
        """Rows of a source that the model can read as well."""
        try:
            rows = self.write(source, self._that_fit(source, numbers))
            if rows:
                read(rows[:1])
        except (DowserError, torch.OutOfMemoryError):  # such as of memory, which says nothing of the model
            raise
        except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
            if self.settings.sources != "auto" or source not in _WITH_PICTURE:
                raise
            if collectives.rank() == 0:
                warnings.warn(
                    f"no rows are written after {source!r}: {type(self.writer.model).__name__} or its processor failed "
                    f"on one ({type(error).__name__}: {error}). What the model does with such pictures is not looked "
                    "at; --dowser.rows.sources lists the others",
                    stacklevel=2,
                )
            return []
        return rows

    def _that_fit(self, source: Source, numbers: Sequence[int]) -> Sequence[int]:
        """Numbers of the rows whose pictures fit into what those of a source may take in host memory."""
        if source not in _WITH_PICTURE or not numbers:
            return numbers
        size = sum(value.nbytes for value in self._picture(source, numbers[0]).image.values())
        return numbers[: max(_FEWEST, _BYTES // max(size, 1))]

    def expected(self, source: Source, numbers: Sequence[int]) -> tuple[int, list[Prompt]]:
        """How many of the rows there will be, and some as long as they can get; the model writes nothing.

        A user part, which it would write, is as long as it is on average, of tokens that say nothing.
        """
        fitting, word = self._that_fit(source, numbers), self.writer.ordinary[:1]
        numbers = list(fitting[:_EXAMPLES])
        if source == "turn":
            assert self.openers is not None
            answer = token_ids(self.writer.tokenizer, self.openers.assistant, False)
            starts = [self._opener().followed_by(word.repeat(sum(_TURN) // 2), answer)] * len(numbers)
        else:
            starts = self._starts(source, numbers, 0)
        pairs, written = zip(numbers, starts, strict=True), word.repeat(self.settings.num_tokens)
        return len(fitting), [self.writer.prompt(start, written, source, number) for number, start in pairs]

    def remade(self, source: str, number: int, tokens: Tensor) -> Prompt:
        """A row of which the tokens are known, with the inputs of its picture."""
        start = Start(tokens)
        if source in _WITH_PICTURE:
            picture = self._picture(source, number)
            start = picture.followed_by(tokens[len(picture.tokens) :])
        return self.writer.prompt(start, tokens[:0], source, number)

    def _lacks(self, source: str) -> str | None:
        if source in ("chat", "turn") and self.openers is None:
            return "a chat template that writes what it is given"
        if source in _WITH_PICTURE and not self.writer.places_pictures:
            names = f"{type(self.writer.processor).__name__} and {type(self.writer.model).__name__}"
            return f"a processor that places pictures and a model that sees them, got {names}"
        if source in MADE_OF_PICTURES and not self.pictures:
            return "training pictures, which the data has not"
        return None

    def _starts(self, source: str, numbers: list[int], attempt: int) -> list[Start]:
        if source == "text":
            return [self._words(number, attempt) for number in numbers]
        if source == "chat":
            return [self._opener()] * len(numbers)
        if source == "turn":
            return self._with_turns(source, [self._opener()] * len(numbers), numbers, attempt)
        starts = [self._picture(source, number) for number in numbers]
        helped = self.openers is not None and attempt >= _TRIES // 2
        return self._with_turns(source, starts, numbers, attempt) if helped else starts

    def _with_turns(self, source: str, starts: list[Start], numbers: list[int], attempt: int) -> list[Start]:
        """Behind each start a user part that is written without a picture, and the assistant's opener."""
        assert self.openers is not None
        streams = [self._stream("user", source, number, attempt) for number in numbers]
        lengths = [int(torch.randint(_TURN[0], _TURN[1] + 1, (), generator=each)) for each in streams]
        parts = self.writer.write([self._opener()] * len(numbers), streams, _TURN[1])
        answer = token_ids(self.writer.tokenizer, self.openers.assistant, False)
        return [
            start.followed_by(before(self.writer.without_end(part), answer)[:length], answer)
            for start, part, length in zip(starts, parts, lengths, strict=True)
        ]

    def _words(self, number: int, attempt: int) -> Start:
        generator = self._stream("prefix", "text", number, attempt)
        count = int(torch.randint(_PREFIX[0], _PREFIX[1] + 1, (), generator=generator))
        ordinary = self.writer.ordinary
        bos = self.writer.tokenizer.bos_token_id
        first = torch.tensor([] if bos is None else [bos], dtype=torch.int64)
        return Start(torch.cat([first, ordinary[torch.randint(len(ordinary), (count,), generator=generator)]]))

    def _opener(self) -> Start:
        assert self.openers is not None
        return Start(token_ids(self.writer.tokenizer, self.openers.user, True))

    def _picture(self, source: str, number: int) -> Start:
        generator = self._stream("picture", source, number, 0)  # the same picture in every try
        if source in PICTURES:
            picture = PICTURES[source](generator, self.writer.side)
        else:
            picture = MADE_OF_PICTURES[source](generator, self.pictures)
        return self.writer.start_with(picture, None if self.openers is None else self.openers.picture)

    def _stream(self, use: str, source: str, number: int, attempt: int) -> torch.Generator:
        return stream(self.settings.seed, "rows", use, source, number, attempt)
