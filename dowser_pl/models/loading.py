"""Hugging Face models and processors, loaded whole or not at all; or from their config, as shapes and dtypes alone."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.image_processing_backends import PilBackend

from dowser_pl.errors import DowserError
from dowser_pl.models.agreement import check_agreement
from dowser_pl.models.experts import refuse_unpacked
from dowser_pl.models.layouts import foreign_config
from dowser_pl.models.nvila import NVILAConfig, NVILAProcessor, is_nvila
from dowser_pl.models.quantized import Quantization, pack_empty, quantization_options
from dowser_pl.models.sources import cached_snapshot, explained, find_source
from dowser_pl.models.text_only import Processor, auto_class, reads_images, reads_text_alone, tokenizer_of
from dowser_pl.models.weight_files import WeightFiles, weight_files

__all__ = ["Dtype", "check_finite", "files_of", "load_model", "load_processor", "read_config", "skeleton"]


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
    """A model that writes text, in eval mode, every weight of it read from the files.

    One that takes images and text is loaded as such, a language model of text alone as that.

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
        DowserError: not a model that writes text, one to be packed whose experts cannot be, or weights that are
            missing, left over or of another shape: transformers would fill them at random, and scores of random weights
            mean nothing; or not finite.
    """
    if dtype not in get_args(Dtype):
        raise DowserError(f"got dtype={dtype!r}, expected one of {list(get_args(Dtype))}.")
    source = find_source(path)
    config = read_config(path, source, trust_remote_code)
    model_class = auto_class(path, config)
    if Path(source).is_dir():
        weight_files(path, Path(source))
    if quantization != "none" and not trust_remote_code:  # that of others may not be made for models without weights
        skeleton(path, dtype=dtype, quantization=quantization)  # refuses what cannot be packed
    with explained(path):
        loaded: Any = model_class.from_pretrained(
            source,
            config=config,
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
    if not empty:
        check_finite(path, model)
    if gradient_checkpointing:
        _enable_gradient_checkpointing(model)
    return model


def read_config(path: str, source: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a model.

    Args:
        path: as the user wrote it.
        source: what `find_source` made of it.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        DowserError: it is damaged, of an unknown model, or of other code than transformers.
    """
    with explained(path):
        said = PreTrainedConfig.get_config_dict(source)[0]
        if is_nvila(said):
            return NVILAConfig.from_pretrained(source)
        found = foreign_config(said)
        if found is None:
            config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
            return config
    raise DowserError(f"got {path}, {found[0]}, expected a model class of transformers. Fix: {found[1]}.")


def files_of(path: str) -> WeightFiles:
    """The files that `load_model` would read the weights from, as they are now; none of a hub id not yet cached.

    Raises:
        FileNotFoundError: nothing at `path`.
        DowserError: some are missing.
    """
    source = find_source(path)
    folder = source if Path(source).is_dir() else cached_snapshot(source)
    return WeightFiles() if folder is None else WeightFiles.of(weight_files(path, Path(folder)))


def load_processor(
    path: str, *, trust_remote_code: bool = False, say: Callable[[str], None] = warnings.warn
) -> Processor:
    """The processor of a model: tokenizer, chat template and images on the PIL backend; of text alone, the tokenizer.

    Pillow is used even where torchvision is installed, so that the same image gives the same pixels everywhere.
    A tokenizer without a padding token pads with its end token; padded positions are masked, so the choice
    changes no result. The padding side is the caller's business. What old folders do not say of LLaVA's image tokens
    is taken from the config of the model.

    Args:
        path: hub id, local folder, or "embedded:world".
        trust_remote_code: run Python code that comes with the model.
        say: shows a person a sentence about what was completed or could not be checked.

    Raises:
        FileNotFoundError: nothing at `path`.
        DowserError: not a model that writes text, no complete processor there, one of another model, or a tokenizer
            without padding and end token.
    """
    source = find_source(path)
    config = read_config(path, source, trust_remote_code)
    auto_class(path, config)  # what no processor would help
    kind: Any = AutoTokenizer if reads_text_alone(config) else AutoProcessor
    if isinstance(config, NVILAConfig):  # its folders name the processor of SigLIP, or code of their own
        kind = NVILAProcessor
    with explained(path):
        processor: Any = kind.from_pretrained(source, trust_remote_code=trust_remote_code)
    if kind is not AutoTokenizer:
        _check_processor(path, processor)
    if reads_images(processor) and not isinstance(processor.image_processor, PilBackend):
        with explained(path):
            processor.image_processor = AutoImageProcessor.from_pretrained(
                source, backend="pil", trust_remote_code=trust_remote_code
            )
    tokenizer = tokenizer_of(processor)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise DowserError(
                f"the tokenizer of {path} has neither a padding nor an end token, expected at least an end token. "
                f"Fix: set eos_token in its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    for sentence in check_agreement(path, source, processor, config):
        say(sentence)
    found: Processor = processor
    return found


@torch.no_grad()
def check_finite(path: str, model: PreTrainedModel) -> None:
    """Refuse weights that are no numbers: whatever is computed from them is none either.

    Reads each tensor once. Buffers may be infinite (masks are).

    Raises:
        DowserError: naming the first tensors, by their names in the model.
    """
    buffers = {name for name, _ in model.named_buffers()}
    floats = [(n, t) for n, t in model.state_dict().items() if isinstance(t, Tensor) and t.is_floating_point()]
    odd = [(name, tensor) for name, tensor in floats if not _is_finite(tensor, name in buffers)]
    if odd:
        named = ", ".join(f"{name} ({_counted(tensor)})" for name, tensor in odd[:3])
        raise DowserError(
            f"the weights of {path} hold values that are no finite numbers in {len(odd)} of {len(floats)} tensors: "
            f"{named}; expected finite numbers. Fix: copy or download the files again or go back to an earlier "
            f"checkpoint of that model; where they were converted to float16, take bfloat16 or float32."
        )


def _is_finite(tensor: Tensor, may_be_infinite: bool) -> bool:
    """By the extremes, which NaN becomes too: ten gigabytes a second and core, thirty times as fast as isfinite."""
    if tensor.is_meta or not tensor.numel():
        return True
    extremes = torch.stack(torch.aminmax(tensor.float() if tensor.itemsize == 1 else tensor))
    return not bool(extremes.isnan().any() if may_be_infinite else (~extremes.isfinite()).any())


def _counted(tensor: Tensor) -> str:
    return f"{int(tensor.isnan().sum())} NaN and {int(tensor.isinf().sum())} infinite of {tensor.numel()}"


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
        raise DowserError(
            f"the weights of {path} do not fit its config.json, expected every weight exactly once. Got "
            f"{'; '.join(found)}. Fix: use files and config of one and the same model."
        )


def _check_processor(path: str, processor: object) -> None:
    attributes = processor.get_attributes() if isinstance(processor, ProcessorMixin) else []
    if not {"image_processor", "tokenizer"} <= set(attributes):
        raise DowserError(
            f"got a {type(processor).__name__} at {path}, expected a processor of images and text. Fix: copy "
            f"processor_config.json and preprocessor_config.json of the model next to its config.json."
        )


def _enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Without re-entrance, so that frozen embeddings do not cut the gradient.

    transformers would also let every embedding ask for a gradient (vision tower included): the backward pass would
    then run through all frozen layers below the tuned ones. That hook is taken off again.
    """
    settings = {"use_reentrant": False}
    enable: Any = getattr(model, "activation_checkpointing_enable", None)  # its name in recent transformers
    (enable or model.gradient_checkpointing_enable)(settings)
    model.disable_input_require_grads()


def skeleton(
    path: str,
    *,
    dtype: Dtype = "auto",
    eager: bool = False,
    trust_remote_code: bool = False,
    quantization: Quantization = "none",
) -> PreTrainedModel:
    """The model that `load_model` would load, on the meta device; reads `config.json` and nothing else.

    Args:
        path: hub id, local folder, or "embedded:world".
        dtype: of the weights; "auto" takes that of the config, float32 where it names none.
        eager: attention that is not fused.
        trust_remote_code: run Python code that comes with the model.
        quantization: as for `load_model`; of the packed matrices there are shapes too.

    Raises:
        FileNotFoundError: nothing at `path`.
        DowserError: not a model that writes text, or one to be packed whose experts cannot be.
    """
    config: Any = read_config(path, find_source(path), trust_remote_code)
    model_class = auto_class(path, config)
    with explained(path):
        chosen = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
        options = {"attn_implementation": "eager"} if eager else {}
        with torch.device("meta"):
            model: PreTrainedModel = model_class.from_config(
                config, dtype=chosen, trust_remote_code=trust_remote_code, **options
            )
        refuse_unpacked(model, quantization)
        pack_empty(model, quantization, dtype)
    return model
