"""How a model writes, in evaluation and in the importance pass alike: with which settings, and where an answer ends.

`generate` fills every setting that a caller leaves open from the model's own `generation_config`: published ones
ask for penalties, forbidden words or a least length, which are meant for conversations and change scores. Here nothing
of it counts but the ids of tokens, unless a user asks for all of it.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from dowser_pl.distributed.models import generating, is_sharded_model
from dowser_pl.errors import DowserError
from dowser_pl.models.layers import text_model

__all__ = ["Ending", "generation_tokens", "greedy_answers", "own_ends", "write_tokens"]

_TOKENS = ("bos_token_id", "decoder_start_token_id", "pad_token_id")


@dataclass(frozen=True)
class Ending:
    """What ends an answer: tokens, or words.

    Attributes:
        ids: tokens, any of which ends it.
        text: words that end it as well, where a chat template closes turns by ordinary words; "" = none.
    """

    ids: tuple[int, ...]
    text: str = ""

    def length(self, tokens: Tensor, tokenizer: Any) -> int:
        """How many of the (T,) tokens that a model wrote belong to the answer, its end included."""
        found = torch.isin(tokens, tokens.new_tensor(self.ids)).nonzero() if self.ids else tokens.new_empty(0)
        length = int(found[0]) + 1 if len(found) else len(tokens)
        if self.text and self.text in _decode(tokenizer, tokens[:length]):
            return next(n for n in range(1, length + 1) if self.text in _decode(tokenizer, tokens[:n]))
        return length

    def said(self, tokens: Tensor, tokenizer: Any) -> str:
        """The words of the (T,) tokens that a model wrote, up to their end."""
        kept = tokens[: self.length(tokens, tokenizer)]
        if len(kept) and int(kept[-1]) in self.ids:
            kept = kept[:-1]
        if self.text and self.text in (words := _decode(tokenizer, kept, skip_special_tokens=True)):
            return words.partition(self.text)[0].strip()
        return str(tokenizer.decode(kept, skip_special_tokens=True)).strip()


def own_ends(model: PreTrainedModel, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a text of this model, by its generation config, its tokenizer and its config.

    A class of configs has an end token even where a folder names none, and in this model's vocabulary that number may
    be an ordinary word: what comes from a config counts only where the tokenizer has set that token apart.
    """
    set_apart = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    configs = [model.config, model.config.get_text_config()]
    of_configs = [token for config in configs for token in _ids(config)]
    ends: dict[int, None] = {}  # in order, each once
    for settings in (part.generation_config for part in _writers(model)):
        meant = [token for token in _ids(settings) if not (settings._from_model_config and token in of_configs)]
        ends |= dict.fromkeys(token for token in _ids(settings) if token in meant or token in set_apart)
    ends |= dict.fromkeys(token for token in of_configs if token in set_apart)
    if tokenizer.eos_token_id is not None:
        ends[int(tokenizer.eos_token_id)] = None
    return tuple(token for token in ends if token >= 0)


def write_tokens(
    model: Any,
    tokenizer: Any,
    inputs: dict[str, Tensor],
    max_new_tokens: int,
    ending: Ending,
    choose: LogitsProcessor | None = None,
    own_settings: bool = False,
) -> Tensor:
    """What `generate` gives, in rows of (T,): greedy, with a KV cache, one continuation of each prompt.

    Where the weights are sharded over processes, all must call it together; it goes on until the last one is done.

    Args:
        model: Hugging Face model in eval mode.
        tokenizer: has the padding token.
        inputs: what the model takes, `input_ids` (B, T) among it.
        max_new_tokens: longest continuation.
        ending: what ends one.
        choose: picks the tokens instead, by the logits it returns.
        own_settings: write with the settings of the model's generation config instead of greedily; what is drawn is
            the same in every call.
    """
    pad = ending.ids[0] if tokenizer.pad_token_id is None and ending.ids else tokenizer.pad_token_id
    kept = {name: _first(model, name) for name in ("bos_token_id", "decoder_start_token_id")}
    settings = copy.deepcopy(model.generation_config) if own_settings else GenerationConfig(do_sample=False)
    chosen = {"max_new_tokens": max_new_tokens, "eos_token_id": list(ending.ids) or None, "pad_token_id": pad, **kept}
    alone = {"max_length": None, "num_return_sequences": 1, "return_dict_in_generate": False}
    for name, value in (chosen | (alone if own_settings else {})).items():
        setattr(settings, name, value)
    stops = [ending.text, *([stops] if isinstance(stops := settings.stop_strings or [], str) else stops)]
    settings.stop_strings = None  # those of transformers work with some tokenizers only
    with _nothing_of_its_own(model), generating(model), _packed_for_head(model), _same_draws(bool(settings.do_sample)):
        tokens: Tensor = model.generate(
            **inputs,
            generation_config=settings,
            logits_processor=LogitsProcessorList([choose] if choose else []),
            stopping_criteria=StoppingCriteriaList([_Says(text, tokenizer) for text in stops if text]),
            synced_gpus=is_sharded_model(model),
        )
    return tokens


def generation_tokens(model: PreTrainedModel, ending: Ending) -> dict[str, Any]:
    """What a generation config says of tokens, and of those that end an answer all of `ending`."""
    tokens = {name: getattr(model.generation_config, name, None) for name in _TOKENS}
    return {name: value for name, value in tokens.items() if value is not None} | {"eos_token_id": list(ending.ids)}


def greedy_answers(
    model: PreTrainedModel,
    tokenizer: Any,
    inputs: dict[str, Tensor],
    max_new_tokens: int,
    ending: Ending | None = None,
    own_settings: bool = False,
) -> list[str]:
    """Greedy answers to left-padded prompts.

    Args:
        model: image-text-to-text model in eval mode.
        tokenizer: decodes the answers.
        inputs: what the processor made of a batch, `input_ids` (B, T) among it.
        max_new_tokens: longest answer.
        ending: what ends an answer; None = the model's own end tokens.
        own_settings: see `write_tokens`.

    Returns:
        B strings without special tokens and surrounding space.
    """
    ending = Ending(own_ends(model, tokenizer)) if ending is None else ending
    tokens = write_tokens(model, tokenizer, inputs, max_new_tokens, ending, own_settings=own_settings)
    prompt = inputs["input_ids"]
    repeated = torch.equal(tokens[:, : prompt.shape[1]], prompt)  # encoder-decoders begin with a start token instead
    return [ending.said(row, tokenizer) for row in tokens[:, prompt.shape[1] if repeated else 1 :].cpu()]


class _Says(StoppingCriteria):
    """Ends the rows that have said certain words since the first call."""

    def __init__(self, text: str, tokenizer: Any) -> None:
        self.text = text
        self.tokenizer = tokenizer
        self.start: int | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        """(B,) bool; the last of the (B, T) tokens is new."""
        self.start = input_ids.shape[1] - 1 if self.start is None else self.start
        said = [self.text in _decode(self.tokenizer, row) for row in input_ids[:, self.start :].cpu()]
        return torch.tensor(said, device=input_ids.device)


@contextmanager
def _nothing_of_its_own(model: torch.nn.Module) -> Iterator[None]:
    """Empty generation configs, of the model and of a language model inside that `generate` may hand over to."""
    own = [(part, part.generation_config) for part in _writers(model)]
    for part, _ in own:
        part.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for part, settings in own:
            part.generation_config = settings


@contextmanager
def _packed_for_head(model: PreTrainedModel) -> Iterator[None]:
    """Give the head the last positions of the prompts as a tensor of their own.

    They are a slice of all positions, and of such a slice a CPU multiplies each row by a copy of its own of a frozen
    head: seven seconds instead of a hundredth for 32 rows of bfloat16 and a vocabulary of 49,152.
    """
    head = text_model(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _same_draws(draws: bool) -> Iterator[None]:
    """A random state of its own, so that what is drawn depends on nothing and changes nothing."""
    if not draws:
        yield
        return
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(0)
        yield


def _writers(model: torch.nn.Module) -> list[Any]:
    parts: list[Any] = list(model.modules())
    return [part for part in parts if isinstance(getattr(part, "generation_config", None), GenerationConfig)]


def _first(model: Any, name: str) -> Any:
    """A special token, by who counts most."""
    places = [*(part.generation_config for part in _writers(model)), model.config, model.config.get_text_config()]
    found = (getattr(place, name, None) for place in places)
    return next((value for value in found if value is not None), None)


def _ids(settings: Any) -> Iterable[int]:
    ids = getattr(settings, "eos_token_id", None)
    try:
        return [] if ids is None else [*map(int, ids)] if isinstance(ids, list | tuple) else [int(ids)]
    except (ValueError, TypeError) as error:
        raise DowserError(
            f"the model's config.json or generation_config.json has eos_token_id {ids!r}, expected the id of a token "
            "or a list of ids. Fix: correct it there"
        ) from error


def _decode(tokenizer: Any, tokens: Tensor, skip_special_tokens: bool = False) -> str:
    """Text in which the words of an ending are found: just as the tokens spell it."""
    return str(tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))
