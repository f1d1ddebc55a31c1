"""How starts of rows are continued: those of one shape together, so that none is padded; shared over processes.

Legend: L tokens of a start, T written tokens, B rows of a batch.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dowser_pl.distributed import collectives
from dowser_pl.distributed.models import device_of, is_sharded_model
from dowser_pl.importance.batches import halving, in_step
from dowser_pl.importance.prompts import Prompt, SampleFromStreams, TextInputs, split_vocabulary
from dowser_pl.importance.settings import Probe
from dowser_pl.models.generation import Ending, write_tokens
from dowser_pl.models.layers import text_model
from dowser_pl.models.text_only import reads_images, tokenizer_of

__all__ = ["Openers", "RowWriter", "Start", "before", "token_ids"]

_TOGETHER = 64  # rows of text alone
_SIDE = 336  # pixels, where the processor does not say
_OPTION = "rows.batch_size"


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
class Start:
    """What a row starts with.

    Attributes:
        tokens: (L,) int64.
        image: what the processor made of its picture, without masks.
    """

    tokens: Tensor
    image: dict[str, Tensor] = field(default_factory=dict)

    def followed_by(self, *parts: Tensor) -> "Start":
        """The same with more tokens of text behind it; what is told per token is 0 there, as of text."""
        tokens = torch.cat([self.tokens, *parts])
        more = len(tokens) - len(self.tokens)
        image = {
            name: torch.nn.functional.pad(value, (0, more)) if value.shape == (1, len(self.tokens)) else value
            for name, value in self.image.items()
        }
        return Start(tokens, image)

    @property
    def shape(self) -> tuple[object, ...]:
        """What starts of one batch have in common."""
        return len(self.tokens), *((name, tuple(value.shape)) for name, value in sorted(self.image.items()))


@dataclass(frozen=True)
class RowWriter:
    """Continues starts by sampling from the model.

    Attributes:
        model: Hugging Face decoder in eval mode.
        processor: or a tokenizer.
        temperature: of the sampling.
        batch_size: rows with pictures at a time.
        text_inputs: what the model takes for tokens and their mask.
        ending: what ends a text.
    """

    model: Any
    processor: Any
    temperature: float
    batch_size: int
    text_inputs: TextInputs
    ending: Ending

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer, or the processor itself where it is one."""
        return tokenizer_of(self.processor)

    @cached_property
    def ordinary(self) -> Tensor:
        """Ids that are words."""
        return split_vocabulary(self.tokenizer, self.ending)[0]

    @cached_property
    def image_ids(self) -> list[int]:
        """Ids that stand where a picture is."""
        token = getattr(self.processor, "image_token", None)
        known = {getattr(self.processor, "image_token_id", None), *(getattr(self.processor, "image_ids", None) or ())}
        known |= {getattr(self.model.config, name, None) for name in ("image_token_id", "image_token_index")}
        if isinstance(token, str):
            known.add(self.tokenizer.convert_tokens_to_ids(token))
        return sorted(each for each in known if isinstance(each, int))

    @property
    def places_pictures(self) -> bool:
        """Whether the processor puts pictures into a text, and the model looks at them."""
        token = getattr(self.processor, "image_token", None)  # some tokenizers have one too
        looks = "pixel_values" in inspect.signature(self.model.forward).parameters
        return looks and isinstance(token, str) and reads_images(self.processor)

    @property
    def side(self) -> int:
        """Pixels of the pictures that the processor makes, so that noise is not averaged away."""
        sizes = [getattr(self.processor.image_processor, name, None) or {} for name in ("crop_size", "size")]
        found = [dict(size).get(key) for size in sizes for key in ("height", "shortest_edge", "longest_edge")]
        return next((int(each) for each in found if each and each <= 1024), _SIDE)

    def start_with(self, picture: Image.Image, text: str | None) -> Start:
        """`text` with the picture in it; None = the start of a text and the picture."""
        text = (self.tokenizer.bos_token or "") + self.processor.image_token if text is None else text
        special = not text.startswith(self.tokenizer.bos_token or "\0")
        made = dict(self.processor(text=[text], images=[picture], return_tensors="pt", add_special_tokens=special))
        tokens = made.pop("input_ids")[0]
        for name in ("attention_mask", "labels"):  # PaliGemma's makes labels of any text
            made.pop(name, None)
        return Start(tokens, made)

    def write(self, starts: list[Start], streams: list[torch.Generator], num_new: int) -> list[Tensor]:
        """(T,) tokens behind each start, their end included; row i is drawn from stream i alone.

        All processes must call it with the same starts; they share the batches and all get all rows.
        """
        uniforms = [torch.rand(num_new, generator=each, dtype=torch.float32) for each in streams]
        order = sorted(range(len(starts)), key=lambda i: repr(starts[i].shape))

        def run(batch: range) -> list[Tensor]:
            chosen = [order[place] for place in batch]
            return self._continue([starts[i] for i in chosen], torch.stack([uniforms[i] for i in chosen]))

        batches = list(self._batches([starts[i] for i in order]))
        if not batches:
            return []
        written: list[Tensor] = []
        if is_sharded_model(self.model):
            written = [row for part in in_step(run, batches, _OPTION) for row in part]
        else:

            def write_share() -> dict[int, list[Tensor]]:
                mine = range(collectives.rank(), len(batches), collectives.world_size())
                return {n: [row for part in halving(run, batches[n], _OPTION) for row in part] for n in mine}

            written = [row for part in collectives.all_gather_numbered(write_share) for row in part]
        rows = dict(zip(order, written, strict=True))
        return [rows[i] for i in range(len(starts))]

    def _batches(self, starts: list[Start]) -> Iterator[range]:
        """Places of neighbours of one shape."""
        first = 0
        for place in range(1, len(starts) + 1):
            size = self.batch_size if starts[first].image else _TOGETHER
            if place == len(starts) or place - first == size or starts[place].shape != starts[first].shape:
                yield range(first, place)
                first = place

    @torch.no_grad()
    def _continue(self, starts: list[Start], uniforms: Tensor) -> list[Tensor]:
        device = device_of(self.model)
        ids = torch.stack([start.tokens for start in starts])
        blocked = sorted({*split_vocabulary(self.tokenizer, self.ending)[1], *self.image_ids})
        sampling = Probe(temperature=self.temperature, top_p=1.0, repetition_penalty=1.0)
        forced = torch.empty(len(starts), 0, dtype=torch.int64)
        sampler = SampleFromStreams(ids.shape[1], forced, uniforms, blocked, sampling)
        if starts[0].image:
            names = starts[0].image
            inputs = {name: torch.cat([each.image[name] for each in starts]).to(device) for name in names}
            inputs |= {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
            writes = self.model
        else:
            inputs = self.text_inputs(ids.to(device), torch.ones_like(ids).to(device))
            writes = text_model(self.model)  # the whole of InstructBLIP and BLIP-2 wants a picture
        rows = write_tokens(writes, self.tokenizer, inputs, uniforms.shape[1], self.ending, sampler).cpu()
        new = rows[:, ids.shape[1] :]
        return [row[: self.ending.length(row, self.tokenizer)].clone() for row in new]  # a view is sent with the batch

    def without_end(self, written: Tensor) -> Tensor:
        """The words alone."""
        return written[:-1] if len(written) and int(written[-1]) in self.ending.ids else written

    def prompt(self, start: Start, written: Tensor, kind: str, number: int) -> Prompt:
        """The row of a start and what was written behind it."""
        tokens = torch.cat([start.tokens, written])
        is_text = ~torch.isin(tokens, tokens.new_tensor(self.image_ids))
        image = start.followed_by(written).image
        of_text, begin = self.text_inputs(tokens[None], torch.ones_like(tokens)[None]), len(start.tokens)
        for name in image.keys() & of_text.keys():  # PaliGemma reads both ways what is not told to be written
            image[name][:, begin:] = of_text[name][:, begin:]
        return Prompt(tokens, None, image, kind, is_text, number)


def token_ids(tokenizer: Any, text: str, begins: bool) -> Tensor:
    """(L,) int64 of a text; one that begins a row gets the token that begins texts, where it has not written it."""
    special = begins and not text.startswith(tokenizer.bos_token or "\0")
    return torch.tensor(tokenizer(text, add_special_tokens=special)["input_ids"], dtype=torch.int64)


def before(words: Tensor, end: Tensor) -> Tensor:
    """Words up to where they begin with `end` themselves."""
    for place in range(len(words) - len(end) + 1 if len(end) else 0):
        if torch.equal(words[place : place + len(end)], end):
            return words[:place]
    return words
