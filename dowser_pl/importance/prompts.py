"""Prompts the model writes itself: BOS + a few random tokens, continued by sampling; with images of noise where asked.

No data is needed to score a model that can write its own (arXiv 2602.04509, section 3). The random prefix is
kept in the probed text. Every prompt has its own random stream, so its text does not depend on the batch:
`generate` would draw from the global random state, so one uniform number per prompt and position, drawn in
advance from the prompt's own stream, picks the token by inverting the cumulative distribution; `generate`
then runs greedily.

Legend: B prompts, V vocabulary, T new positions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    LogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from dowser_pl.distributed import collectives
from dowser_pl.distributed.models import device_of, is_sharded_model
from dowser_pl.errors import DowserError
from dowser_pl.functional.random_streams import stream
from dowser_pl.importance.batches import aligned, halving, in_step
from dowser_pl.importance.settings import Probe
from dowser_pl.models.generation import Ending, own_ends, write_tokens
from dowser_pl.models.text_only import reads_images

__all__ = [
    "Prompt",
    "SampleFromStreams",
    "TextInputs",
    "Tokens",
    "alike",
    "counted",
    "noise_images",
    "plain_text",
    "split_vocabulary",
    "write_prompts",
]


class SampleFromStreams(LogitsProcessor):
    """Turns logits into one-hot choices: a forced prefix first, then samples.

    Args:
        start: positions that stand before the first new token.
        forced: (B, P) int64 tokens to write first; -1 = sample this one.
        uniforms: (B, T) float32 in [0, 1), one per new position.
        blocked: ids that are never written (special tokens other than the end of text).
        settings: temperature, top_p, repetition penalty.
    """

    def __init__(self, start: int, forced: Tensor, uniforms: Tensor, blocked: list[int], settings: Probe) -> None:
        self.start = start
        self.forced = forced
        self.uniforms = uniforms
        self.blocked = blocked
        self.warpers = [
            RepetitionPenaltyLogitsProcessor(settings.repetition_penalty),
            TemperatureLogitsWarper(settings.temperature),
            TopPLogitsWarper(settings.top_p),
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) logits -> (B, V) with 0 at the chosen token and -inf elsewhere."""
        step = input_ids.shape[1] - self.start
        choice = self._sample(input_ids, scores.float().clone(), step)
        if step < self.forced.shape[1]:
            forced = self.forced[:, step].to(choice.device)
            choice = torch.where(forced >= 0, forced, choice)
        return torch.full_like(scores, float("-inf")).scatter_(1, choice[:, None], 0.0)

    def _sample(self, input_ids: Tensor, scores: Tensor, step: int) -> Tensor:
        blocked = [index for index in self.blocked if index < scores.shape[1]]
        scores[:, blocked] = float("-inf")
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        cumulative = scores.softmax(dim=-1).cumsum(dim=-1)
        point = self.uniforms[:, step, None].to(cumulative) * cumulative[:, -1:]
        # right=True never lands on an entry of probability zero
        choice = torch.searchsorted(cumulative, point, right=True).flatten()
        return choice.clamp_(max=scores.shape[1] - 1)


_WRITTEN_TOGETHER = 64


class Tokens(Protocol):
    """The part of a Hugging Face tokenizer that prompts need."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    all_special_ids: list[int]
    added_tokens_decoder: Mapping[int, Any]

    def __len__(self) -> int: ...


TextInputs = Callable[[Tensor, Tensor], dict[str, Tensor]]


def plain_text(tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The inputs of most models for text: (B, T) tokens and their (B, T) mask."""
    return {"input_ids": tokens, "attention_mask": mask}


@dataclass(frozen=True)
class Prompt:
    """One synthetic sequence, on the CPU.

    Attributes:
        tokens: (T,) int64 that the decoder reads, image tokens and prefix included.
        source: (T_source,) int64 that the encoder reads; None for decoder-only models.
        image: what the processor made of the image, without ids and masks; empty for text only.
        kind: what the model was given to write after, such as `text` or `noise`.
        is_text: (T,) bool, False where a placeholder of an image stands; None = all of it is text.
        number: of the row among those of its kind.
    """

    tokens: Tensor
    source: Tensor | None = None
    image: dict[str, Tensor] = field(default_factory=dict)
    kind: str = "text"
    is_text: Tensor | None = None
    number: int = 0


def alike(rows: Sequence[Prompt], batch_size: int) -> Iterator[list[int]]:
    """Numbers of rows that a model can read together: without images, or with images of one shape; sources alone."""
    groups: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        shapes = ((name, value.shape) for name, value in sorted(row.image.items()))
        # what is told of each token is as long as the text before what was written, and is padded with it
        key = tuple(each for each in shapes if not each[0].endswith(("token_type_ids", "cross_attention_mask")))
        groups.setdefault(key if row.source is None else number, []).append(number)
    for numbers in groups.values():
        yield from (numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size))


def counted(row: Prompt) -> Tensor:
    """(T,) bool: the positions whose next token is text."""
    positions = torch.zeros(len(row.tokens), dtype=torch.bool)
    positions[:-1] = True if row.is_text is None else row.is_text[1:]
    return positions


def write_prompts(
    model: PreTrainedModel,
    tokenizer: Tokens,
    settings: Probe,
    indices: range,
    images: Callable[[range], list[dict[str, Tensor]]] | None = None,
    text_inputs: TextInputs = plain_text,
    ending: Ending | None = None,
) -> list[Prompt]:
    """Let the model write the prompts of the given numbers.

    Text is written 64 prompts at a time whatever `settings.batch_size` is: generating one token costs about the
    same for one prompt and for many. Prompts with images take more memory and keep to the batch size, and those of
    encoder-decoders are written one at a time. Several processes share the batches, which are those of one process, so
    all must call it and all get all prompts; where the weights are sharded over them, they write in step.

    Args:
        model: Hugging Face model with `generate`, in eval mode.
        tokenizer: gives the vocabulary and the special ids.
        settings: lengths, sampling, seed.
        indices: numbers of the prompts; a prompt depends on its number alone.
        images: gives for numbers of prompts what the processor makes of an image without text: `input_ids` (1, L)
            and the image inputs, all of one shape; None for text-only prompts.
        text_inputs: what the model takes for tokens and their mask, where that is more than the two.
        ending: what ends a text; None = the model's own end tokens.

    Returns:
        The prompts, in order.

    Raises:
        DowserError: if the vocabulary has no ordinary token to start from, or `authors` is asked of an
            encoder-decoder.
    """
    if settings.form == "authors" and model.config.is_encoder_decoder:
        raise DowserError(
            "probe.form authors is of models that go on with a text, and this one has an encoder, which their code "
            "does not know. Fix: set --dowser.probe.form paper"
        )
    ending = Ending(own_ends(model, tokenizer)) if ending is None else ending
    ordinary, special = split_vocabulary(tokenizer, ending)
    writer = _Writer(model, tokenizer, settings, ordinary, special, images, text_inputs, ending)
    encoder_decoder = model.config.get_text_config(decoder=True).is_encoder_decoder
    if encoder_decoder and images:
        raise DowserError(
            f"probe.noise_images has text written behind a picture, got the encoder-decoder {type(model).__name__}; "
            "set --dowser.probe.noise_images false"
        )
    size = 1 if encoder_decoder else settings.batch_size if images else _WRITTEN_TOGETHER
    option = "--dowser.probe.batch_size" if images else "--dowser.probe.num_tokens"
    run = writer.answer_sources if encoder_decoder else writer.continue_prefixes
    batches = list(aligned(indices, size))
    if is_sharded_model(model):
        return [prompt for part in in_step(run, batches, option) for prompt in part]

    def write_share() -> dict[int, list[Prompt]]:
        mine = range(collectives.rank(), len(batches), collectives.world_size())
        return {number: [each for part in halving(run, batches[number], option) for each in part] for number in mine}

    return [prompt for part in collectives.all_gather_numbered(write_share) for prompt in part]


@dataclass(frozen=True)
class _Writer:
    model: Any
    tokenizer: Tokens
    settings: Probe
    ordinary: Tensor
    special: list[int]
    images: Callable[[range], list[dict[str, Tensor]]] | None
    text_inputs: TextInputs
    ending: Ending

    def answer_sources(self, batch: range) -> list[Prompt]:
        """Encoder-decoders: the random tokens are the source, what is written is the target."""
        source = _prefix(self.ordinary, self.settings, batch.start)[None]
        start = torch.tensor([[self.model.config.decoder_start_token_id]])
        return self._write(batch, start, torch.empty(1, 0, dtype=torch.int64), {}, source)

    def continue_prefixes(self, batch: range) -> list[Prompt]:
        """BOS or an image, a random prefix, then samples."""
        forced = torch.full((len(batch), self.settings.max_prefix), -1)
        for row, index in enumerate(batch):
            prefix = _prefix(self.ordinary, self.settings, index)
            forced[row, : len(prefix)] = prefix
        image: dict[str, Tensor] = {}
        begin = self.tokenizer.bos_token_id
        if self.settings.form == "authors":
            start = torch.full((len(batch), 1), 1 if begin is None else begin)
            return self._as_authors(batch, self._write(batch, start, forced, {}, None), forced)
        if self.images is not None:
            encoded = self.images(batch)
            image = {name: torch.cat([each[name] for each in encoded]) for name in encoded[0]}
            start = image.pop("input_ids")
        elif begin is not None:
            start = torch.full((len(batch), 1), begin)
        else:  # no BOS in this family: the first random token starts the text
            start, forced = forced[:, :1], forced[:, 1:]
        return self._write(batch, start, forced, image, None)

    def _as_authors(self, batch: range, prompts: list[Prompt], forced: Tensor) -> list[Prompt]:
        """What was written alone, behind the image where there is one: `generate` over embeddings returns no more."""
        encoded = self.images(batch) if self.images is not None else [{} for _ in batch]
        starts = [image.pop("input_ids", forced.new_empty(1, 0))[0] for image in encoded]
        lengths = 1 + (forced >= 0).sum(dim=1)
        return [
            Prompt(
                torch.cat([start, prompt.tokens[length:]]),
                image={name: value for name, value in image.items() if name != "attention_mask"},
            )
            for prompt, length, start, image in zip(prompts, lengths, starts, encoded, strict=True)
        ]

    @torch.no_grad()
    def _write(
        self, batch: range, start: Tensor, forced: Tensor, image: dict[str, Tensor], source: Tensor | None
    ) -> list[Prompt]:
        device = device_of(self.model)
        num_new = self.settings.num_tokens - (0 if image else 1)
        streams = [stream(self.settings.seed, "sample", index) for index in batch]
        uniforms = torch.stack([torch.rand(num_new, generator=each, dtype=torch.float32) for each in streams])
        sampler = SampleFromStreams(start.shape[1], forced, uniforms, self.special, self.settings)
        inputs = {name: value.to(device) for name, value in image.items()}
        if image:
            inputs["input_ids"] = start.to(device)
        elif source is None:
            inputs = self.text_inputs(start.to(device), torch.ones_like(start).to(device))
        else:
            inputs |= {"input_ids": source.to(device), "decoder_input_ids": start.to(device)}
        rows = write_tokens(self.model, self.tokenizer, inputs, num_new, self.ending, sampler).cpu()
        ends = [start.shape[1] + self.ending.length(row[start.shape[1] :], self.tokenizer) for row in rows]
        image_rows = {name: value.split(len(value) // len(batch)) for name, value in image.items()}
        return [
            Prompt(
                row[:end].clone(),  # a view would be sent with the whole batch
                None if source is None else source[0],
                {name: value[i].clone() for name, value in image_rows.items() if name != "attention_mask"},
            )
            for i, (row, end) in enumerate(zip(rows, ends, strict=True))
        ]


def split_vocabulary(tokenizer: Tokens, ending: Ending) -> tuple[Tensor, list[int]]:
    """Ordinary ids to draw prefixes from, and special ids that must not be written (those that end a text may)."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ordinary = torch.tensor([index for index in range(len(tokenizer)) if index not in special])
    if not len(ordinary):
        raise DowserError(f"all {len(tokenizer)} tokens of the vocabulary are special: no prefix can be drawn")
    return ordinary, sorted(special - set(ending.ids))


def _prefix(ordinary: Tensor, settings: Probe, index: int, use: str = "prefix") -> Tensor:
    """min_prefix..max_prefix random ordinary tokens."""
    random = stream(settings.seed, use, index)
    count = int(torch.randint(settings.min_prefix, settings.max_prefix + 1, (), generator=random))
    return ordinary[torch.randint(len(ordinary), (count,), generator=random)]


_SIDE = 336  # pixels before the processor resizes; CLIP's own resolution


def noise_images(processor: Any, settings: Probe, indices: range) -> list[dict[str, Tensor]]:
    """One noise image per prompt, without text.

    Args:
        processor: Hugging Face processor that places an image by its token, or in front as those of InstructBLIP and
            BLIP-2 do. A Q-Former that reads the instruction is given random words.
        settings: the seed, and how many words.
        indices: numbers of the prompts.

    Returns:
        Per prompt the processor's output: `input_ids` (1, L) and the image inputs, of the same shapes for all.

    Raises:
        DowserError: if the processor cannot place an image, or is a tokenizer.
    """
    token = getattr(processor, "image_token", None)
    in_front = hasattr(processor, "num_query_tokens")
    if not reads_images(processor) or not (in_front or isinstance(token, str)):
        raise DowserError(
            f"{type(processor).__name__} has no image token, so probe.noise_images cannot place an image; "
            "set --dowser.probe.noise_images false"
        )
    as_authors = settings.form == "authors"
    start = ("" if as_authors else processor.tokenizer.bos_token or "") + ("" if in_front else str(token))
    encoded = []
    for index in indices:
        random = stream(settings.seed, "noise", index)
        pixels = torch.randint(0, 256, (_SIDE, _SIDE, 3), generator=random, dtype=torch.uint8)
        image = Image.fromarray(pixels.numpy())
        made = dict(processor(text=[start], images=[image], return_tensors="pt", add_special_tokens=False))
        made.pop("labels", None)  # which PaliGemma's makes of any text
        if "qformer_input_ids" in made:
            made |= _random_instruction(processor.qformer_tokenizer, settings, index)
        if as_authors:
            made["pixel_values"] = torch.randn(made["pixel_values"].shape, generator=random)
        encoded.append(made)
    return encoded


def _random_instruction(tokenizer: Any, settings: Probe, index: int) -> dict[str, Tensor]:
    """min_prefix..max_prefix random words for the Q-Former, padded to what the most of them take."""
    words = _prefix(split_vocabulary(tokenizer, Ending(()))[0], settings, index, "instruction").tolist()
    ids = [each for each in (tokenizer.cls_token_id, *words, tokenizer.sep_token_id) if each is not None]
    padding = [0] * (settings.max_prefix - len(words))
    tokens, mask = torch.tensor([[*ids, *padding]]), torch.tensor([[*(1 for _ in ids), *padding]])
    return {"qformer_input_ids": tokens, "qformer_attention_mask": mask}
