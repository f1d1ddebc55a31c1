"""Models of text alone, whose tokenizer stands where other models have a processor."""

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from dowser_pl.errors import DowserError

__all__ = ["Processor", "auto_class", "reads_images", "reads_text_alone", "tokenizer_of"]

Processor = ProcessorMixin | PreTrainedTokenizerBase
"""What turns rows into tensors: of a model of text alone that is its tokenizer."""

_SENSES = ("vision", "visual", "image", "img", "audio")  # in the names of settings of models with more than text


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor, or the processor itself where it is one.

    Args:
        processor: a Hugging Face processor or tokenizer.
    """
    if isinstance(processor, PreTrainedTokenizerBase):  # some have one of another library under that name
        return processor
    return getattr(processor, "tokenizer", processor)


def reads_images(processor: Any) -> bool:
    """Whether it prepares images; tokenizers do not, though some have an image token.

    Args:
        processor: a Hugging Face processor or tokenizer.
    """
    return hasattr(processor, "image_processor")


def reads_text_alone(config: PreTrainedConfig) -> bool:
    """Whether a config is of a language model without any other sense, which a tokenizer is enough for.

    Args:
        config: of the whole model.
    """
    if _reads_images(config) or any(sense in name for name in config.to_dict() for sense in _SENSES):
        return False
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM.__name__ in _remote_classes(config)
    # encoders, classifiers and halves of encoder-decoders have such configs too
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return not config.architectures or known.__name__ in config.architectures


def auto_class(path: str, config: PreTrainedConfig) -> Any:
    """The class of transformers that loads the model of a config: AutoModelForImageTextToText or AutoModelForCausalLM.

    Args:
        path: of the model, for the message.
        config: of the whole model.

    Raises:
        DowserError: the model does not write text.
    """
    if _reads_images(config):
        return AutoModelForImageTextToText
    if reads_text_alone(config):
        return AutoModelForCausalLM
    got = (config.architectures or [type(config).__name__])[0]
    raise DowserError(
        f"got {path}, a {got} (model type {config.model_type!r}), expected an image-text-to-text model such as "
        f"LlavaForConditionalGeneration or a language model such as LlamaForCausalLM. Fix: name a model that takes "
        f"text, with images or without, and writes text."
    )


def _reads_images(config: PreTrainedConfig) -> bool:
    known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return known or AutoModelForImageTextToText.__name__ in _remote_classes(config)


def _remote_classes(config: PreTrainedConfig) -> dict[str, Any]:
    return getattr(config, "auto_map", None) or {}
