"""Whether the processor of a folder belongs to its model: settings that are missing, token ids, image tokens.

All of it is found from `config.json` and the files of the processor, before a weight is read.
"""

import copy
from collections.abc import Collection
from typing import Any

import torch
from accelerate import init_empty_weights
from PIL import Image
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.initialization import no_init_weights

from dowser_pl.errors import DowserError
from dowser_pl.models.text_only import Processor, reads_images, tokenizer_of

__all__ = ["check_agreement", "check_vocabulary"]

_SIZE = (64, 48)  # of the image that is tried, width and height
_BESIDE = "num_additional_image_tokens"
_SETTINGS = ("patch_size", "vision_feature_select_strategy", _BESIDE, "image_seq_length", "num_query_tokens")


def check_agreement(path: str, source: str, processor: Processor, config: PreTrainedConfig) -> list[str]:
    """Complete the processor from the config of its model, and refuse one that does not belong to it.

    Args:
        path: of the model, for messages.
        source: folder or hub id that the processor was read from.
        processor: what its folder lacks of LLaVA's image settings (`patch_size` ...) is set, in place. Of a tokenizer
            the token ids alone are looked at.
        config: of the model.

    Returns:
        Sentences to show a person: what was set, or that the number of image tokens could not be checked.

    Raises:
        DowserError: token ids without an embedding, another image token, or another number of image tokens.
    """
    known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    model = _hollow(config) if known else None
    rowless = getattr(model, "tokens_without_rows", ())
    check_vocabulary(path, tokenizer_of(processor), _num_rows(config, model), rowless)
    if not reads_images(processor):
        return []
    if model is None or _image_token_id(config) is None:
        return [f"Image tokens of {path} are not checked: its config names none that transformers knows"]
    said = _complete(path, source, processor, config, model)
    batch = _prepared(processor)
    written = 0 if batch is None else int((batch["input_ids"] == _image_token_id(config)).sum())
    if written == 0:
        _check_image_token(path, processor, config)
    if batch is None:
        return [*said, f"Image tokens of {path} are not checked: its processor does not take a lone image"]
    try:
        problem = _problem(model, batch, written)
    except (TypeError, AttributeError, LookupError, NotImplementedError) as error:
        return [*said, f"Image tokens of {path} are not checked: {type(error).__name__}: {error}"]
    if problem is not None:
        settings = {name: getattr(processor, name) for name in _SETTINGS if hasattr(processor, name)}
        raise DowserError(
            f"processor and model of {path} disagree about images: the processor writes {written} image tokens for one "
            f"of {_SIZE[0]}x{_SIZE[1]} pixels, which the model refuses ({problem}), expected one token for each of its "
            f"features. The processor has {settings or type(processor).__name__}, config.json has "
            f"{_of_config(config)}. Fix: take processor_config.json and preprocessor_config.json from the model that "
            f"config.json belongs to, or correct these settings."
        )
    return said


def _num_rows(config: PreTrainedConfig, model: PreTrainedModel | None) -> int | None:
    """Of the embedding; some families have a few more than their vocabulary."""
    if model is None:
        return getattr(config.get_text_config(), "vocab_size", None)
    weight: Any = model.get_input_embeddings().weight
    return int(weight.shape[0])


def check_vocabulary(path: str, tokenizer: Any, rows: int | None, rowless: Collection[str] = ()) -> None:
    """Refuse a tokenizer that can write ids without a row of the embedding; rows without a token are padding.

    Args:
        path: of the model, for the message.
        tokenizer: of it.
        rows: of the embedding; None = not known.
        rowless: tokens that the model replaces before it looks them up.

    Raises:
        DowserError: naming the first of them.
    """
    vocabulary: dict[str, int] = {token: n for token, n in tokenizer.get_vocab().items() if token not in rowless}
    outside = sorted((index, token) for token, index in vocabulary.items() if rows is not None and index >= rows)
    if outside:
        named = ", ".join(f"{token!r} ({index})" for index, token in outside[:5])
        raise DowserError(
            f"the tokenizer of {path} has {len(outside)} tokens without an embedding: {named}; got ids up to "
            f"{outside[-1][0]}, expected ids below {rows}, the rows of the embedding. Fix: take the "
            f"tokenizer that belongs to these weights, or give the new tokens rows with "
            f"model.resize_token_embeddings({outside[-1][0] + 1}) and save the model again."
        )


def _check_image_token(path: str, processor: Any, config: Any) -> None:
    token = getattr(processor, "image_token", None)
    expected = _image_token_id(config)
    if token is None or expected is None:
        return
    got = processor.tokenizer.convert_tokens_to_ids(str(token))
    if got != expected:
        named = processor.tokenizer.convert_ids_to_tokens(expected) if expected < len(processor.tokenizer) else None
        raise DowserError(
            f"processor and model of {path} disagree about the image token: the processor writes {str(token)!r}, id "
            f"{got}, and config.json expects id {expected} ({named!r} of the tokenizer). Fix: take the files of the "
            f"tokenizer and config.json from one and the same model."
        )


def _image_token_id(config: Any) -> int | None:
    """Families have either name for it."""
    found: int | None = getattr(config, "image_token_id", None)
    return getattr(config, "image_token_index", None) if found is None else found


def _complete(path: str, source: str, processor: Any, config: Any, model: PreTrainedModel) -> list[str]:
    """Set what folders of early conversions lack."""
    vision, set_now = getattr(config, "vision_config", None), {}
    for name, owner in (
        ("patch_size", vision),
        ("vision_feature_select_strategy", config),
        ("num_query_tokens", config),
    ):
        value = getattr(owner, name, None)
        if value is not None and getattr(processor, name, value) is None:
            set_now[name] = value
    if hasattr(processor, _BESIDE) and _BESIDE not in type(processor).get_processor_dict(source)[0]:
        set_now[_BESIDE] = _num_beside_patches(model, vision)
    for name, value in set_now.items():
        setattr(processor, name, value)
    told = ", ".join(f"{name} {value}" for name, value in set_now.items())
    return [f"The processor of {path} does not say {told}: taken from the config of the model"] if set_now else []


def _of_config(config: Any) -> dict[str, Any]:
    vision = getattr(config, "vision_config", None)
    names = ("patch_size", "image_size", "spatial_merge_size")
    found = {name: getattr(vision, name) for name in names if hasattr(vision, name)}
    for name in ("vision_feature_select_strategy", "image_seq_length", "num_query_tokens"):
        found |= {name: getattr(config, name)} if hasattr(config, name) else {}
    return found


class _Zeros(nn.Linear):
    """A matrix of zeros that is not multiplied by; the vision towers of large models would take seconds otherwise."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(*values.shape[:-1], self.out_features)


class _CountedScatter(TorchFunctionMode):
    """Refuses to fill marked places with another number of values; some releases of transformers drop what is left."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.masked_scatter and len(args) == 3:
            values, places, source = args
            marked = int(places.expand_as(values).sum())
            if marked != source.numel():
                wide = values.shape[-1]
                raise DowserError(f"it has {source.numel() // wide} image features for {marked // wide} image tokens")
        return func(*args, **(kwargs or {}))


class _EnoughError(Exception):
    """The model has taken the image in; its text decoder is not to run."""


def _hollow(config: PreTrainedConfig) -> PreTrainedModel:
    """The model with zeros for weights, which take no memory, that stops where its text decoder would begin.

    Where features are those of a layer counted from the last, the tower keeps no more layers than that takes: a whole
    one runs for a minute over the 13 tiles of an NVILA.
    """
    config = copy.deepcopy(config)
    layer = getattr(config, "vision_feature_layer", None)
    tower: Any = getattr(config, "vision_config", None)
    if isinstance(layer, int) and layer < 0 and hasattr(tower, "num_hidden_layers"):
        tower.num_hidden_layers = min(tower.num_hidden_layers, 1 - layer)
    empty = init_empty_weights(include_buffers=False)  # what draws all the same draws from a state of its own
    with torch.random.fork_rng(devices=[]), empty, no_init_weights():
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Zeros
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.zeros(()).expand(weight.shape), requires_grad=False))
    decoder: nn.Module = model
    while isinstance(decoder, PreTrainedModel) and (inner := decoder.get_decoder()) is not decoder:
        decoder = inner
    decoder.register_forward_pre_hook(_enough)
    return model.eval()


def _enough(*_: Any) -> None:
    raise _EnoughError


@torch.no_grad()
def _num_beside_patches(model: PreTrainedModel, vision: Any) -> int:
    """How many tokens the vision tower has beside one for each patch: 1 for CLIP's class token, 0 for SigLIP."""
    side = int(vision.image_size)
    tower: Any = model.get_encoder(modality="image")
    hidden = tower(torch.zeros(1, getattr(vision, "num_channels", 3), side, side)).last_hidden_state
    return int(hidden.shape[1]) - (side // int(vision.patch_size)) ** 2


def _prepared(processor: Any) -> dict[str, Any] | None:
    """What the model's forward takes for a question about one image; None if it cannot be asked for so simply."""
    inline = type(processor).replace_image_token is not ProcessorMixin.replace_image_token
    token = getattr(processor, "boi_token", None) or getattr(processor, "image_token", None)
    text = f"{token} x" if inline and token is not None else "x"
    try:
        batch = processor(text=[text], images=[[Image.new("RGB", _SIZE)]], return_tensors="pt")
    except (ValueError, TypeError, AttributeError, KeyError, IndexError):
        return None
    return dict(batch)


@torch.no_grad()
def _problem(model: PreTrainedModel, batch: dict[str, Any], written: int) -> str | None:
    """What the model says against the image tokens; None if it takes them."""
    queries = getattr(model.config, "num_query_tokens", written)
    if written != queries:  # such models fill as many as there are, without a word
        return f"it has {queries} queries"
    try:
        with _CountedScatter():
            model(**batch)
    except _EnoughError:
        return None
    except NotImplementedError:
        raise
    except (ValueError, RuntimeError) as error:
        return str(error).strip().split("\n", maxsplit=1)[0].rstrip(".")
    return None
