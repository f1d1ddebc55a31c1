"""Hugging Face models and processors, loaded whole or not at all."""

from typing import Any, Literal, get_args

from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.image_processing_backends import PilBackend

from dowser_pl.models.quantized import Quantization, quantization_options
from dowser_pl.models.sources import explained, locate

__all__ = ["Dtype", "load_model", "load_processor"]

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def load_model(
    path: str,
    *,
    dtype: Dtype = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    gradient_checkpointing: bool = False,
    quantization: Quantization = "none",
    empty: bool = False,
) -> PreTrainedModel:
    """An image-text-to-text model in eval mode, every weight of it read from the files.

    Args:
        path: hub id, local folder, or "embedded:world".
        dtype: of the weights; "auto" takes that of the files.
        attn_implementation: as in from_pretrained ("sdpa", "eager", "flash_attention_2"); None for its choice.
        trust_remote_code: run Python code that comes with the model.
        gradient_checkpointing: recompute activations in the backward pass; works in train mode only.
        quantization: load the matrices in 8 or 4 bits (bitsandbytes); such weights can be scored, not tuned.
        empty: on the meta device, without memory, for another process to fill.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: not an image-text-to-text model, or weights that are missing, left over or of another shape:
            transformers would fill them at random, and scores of random weights mean nothing.
    """
    if dtype not in get_args(Dtype):
        raise ValueError(f"got dtype={dtype!r}, expected one of {list(get_args(Dtype))}.")
    source = locate(path)
    with explained(path):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    _check_class(path, config)
    with explained(path):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported by _check_weights, with names and shapes
            **quantization_options(quantization, dtype),
            **({"device_map": "meta"} if empty else {}),
        )
    model: PreTrainedModel = loaded[0]
    _check_weights(path, report=loaded[1])
    if gradient_checkpointing:
        _enable_gradient_checkpointing(model)
    return model


def load_processor(path: str, *, trust_remote_code: bool = False) -> ProcessorMixin:
    """The processor of a model: tokenizer, chat template and images on the PIL backend.

    Pillow is used even where torchvision is installed, so that the same image gives the same pixels everywhere.
    A tokenizer without a padding token pads with its end token; padded positions are masked, so the choice
    changes no result. The padding side is the caller's business.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: no complete processor there, or a tokenizer without padding and end token.
    """
    source = locate(path)
    with explained(path):
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    _check_processor(path, processor)
    if not isinstance(processor.image_processor, PilBackend):
        with explained(path):
            processor.image_processor = AutoImageProcessor.from_pretrained(
                source, backend="pil", trust_remote_code=trust_remote_code
            )
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"the tokenizer of {path} has neither a padding nor an end token, expected at least an end token. "
                f"Fix: set eos_token in its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _check_class(path: str, config: PreTrainedConfig) -> None:
    remote_classes: dict[str, Any] = getattr(config, "auto_map", None) or {}
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or "AutoModelForImageTextToText" in remote_classes:
        return
    got = (config.architectures or [type(config).__name__])[0]
    raise ValueError(
        f"got {path}, a {got} (model type {config.model_type!r}), expected an image-text-to-text model such as "
        f"LlavaForConditionalGeneration. Fix: name a model that takes images and text and writes text."
    )


def _check_weights(path: str, report: dict[str, Any]) -> None:
    mismatched = [f"{name} {tuple(got)} for {tuple(want)}" for name, got, want in report["mismatched_keys"]]
    problems = {
        "missing from the files": sorted(report["missing_keys"]),
        "unknown to the model": sorted(report["unexpected_keys"]),
        "of another shape (in the files, for in the model)": sorted(mismatched),
        "not readable": list(report["error_msgs"]),
    }
    found = [f"{len(names)} {what}: {', '.join(names[:5])}" for what, names in problems.items() if names]
    if found:
        raise ValueError(
            f"the weights of {path} do not fit its config.json, expected every weight exactly once. Got "
            f"{'; '.join(found)}. Fix: use files and config of one and the same model."
        )


def _check_processor(path: str, processor: object) -> None:
    attributes = processor.get_attributes() if isinstance(processor, ProcessorMixin) else []
    if not {"image_processor", "tokenizer"} <= set(attributes):
        raise ValueError(
            f"got a {type(processor).__name__} at {path}, expected a processor of images and text. Fix: copy "
            f"processor_config.json and preprocessor_config.json of the model next to its config.json."
        )


def _enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Without re-entrance, so that frozen embeddings do not cut the gradient.

    transformers would also let every embedding ask for a gradient (vision tower included): the backward pass would
    then run through all frozen layers below the tuned ones. That hook is taken off again.
    """
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # its name in recent transformers
        model.activation_checkpointing_enable(settings)
    else:
        model.gradient_checkpointing_enable(settings)
    model.disable_input_require_grads()
