"""Weights of bitsandbytes: 4 or 8 bits that can be read, so that they can be scored, but not tuned."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from dowser_pl.errors import DowserError

__all__ = [
    "Quantization",
    "base_weight",
    "is_quantized",
    "keep_as_loaded",
    "pack_empty",
    "quantization_options",
    "scale_bytes",
]

Quantization = Literal["none", "8bit", "4bit"]
_NESTED = 256  # scales of 4-bit weights that share one scale themselves (double quantization), and its 256 values


def quantization_options(quantization: Quantization, dtype: str) -> dict[str, Any]:
    """What `from_pretrained` takes to load the matrices in 8 bits (LLM.int8) or 4 (NF4).

    Args:
        quantization: "none", "8bit" or "4bit".
        dtype: in which 4-bit matrices multiply; "auto" stands for bfloat16.

    Raises:
        DowserError: if there is no such quantization.
    """
    if quantization not in get_args(Quantization):
        raise DowserError(f"got quantization={quantization!r}, expected one of {list(get_args(Quantization))}.")
    if quantization == "none":
        return {}
    compute = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    config = BitsAndBytesConfig(
        load_in_8bit=quantization == "8bit",
        load_in_4bit=quantization == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
    )
    return {"quantization_config": config}


def is_quantized(linear: nn.Linear) -> bool:
    """Whether the weight is packed into integers."""
    return not linear.weight.is_floating_point()


def scale_bytes(linear: nn.Module) -> int:
    """What a module of packed weights keeps beside them to unpack them; 0 for all others.

    Of 4-bit weights a float32 scale for each block of 64 entries and the 16 values that an entry can have; with double
    quantization the scales take a byte each, with a float32 scale for 256 of them, their mean and the 256 values of a
    byte (arXiv 2305.14314, sections 2 and 3). Of 8-bit weights a float32 scale for each output.
    """
    if not isinstance(linear, nn.Linear):  # adapters show the weight of the matrix beside them as theirs
        return 0
    weight: Any = linear.weight
    fresh, used = getattr(weight, "SCB", None), getattr(getattr(linear, "state", None), "SCB", None)
    state, kept = getattr(weight, "quant_state", None), [used if fresh is None else fresh]
    while state is not None:
        kept += [state.absmax, state.code, state.offset]
        state = state.state2
    return sum(each.nbytes for each in kept if each is not None)


def pack_empty(model: PreTrainedModel, quantization: Quantization, dtype: str) -> None:
    """Give a model on the meta device the packed matrices that `from_pretrained` would give it, and their scales.

    Args:
        model: as its config makes it.
        quantization: "8bit" or "4bit"; "none" changes nothing, unless the files are packed already: then they are as
            they are.
        dtype: as for `quantization_options`.
    """
    own: Any = getattr(model.config, "quantization_config", None)
    asked = quantization_options(quantization, dtype).get("quantization_config")
    if isinstance(own, dict) and own.get("quant_method") == "bitsandbytes":
        asked = BitsAndBytesConfig.from_dict(own)
    if asked is None:
        return
    plain = model.dtype
    quantizer: Any = AutoHfQuantizer.from_config(asked, pre_quantized=False)
    quantizer.preprocess_model(model, device_map=None)
    quantizer.postprocess_model(model)
    with torch.device("meta"):
        for module in model.modules():
            weight: Any = getattr(module, "weight", None)
            if hasattr(weight, "quant_state"):
                _pack_4bit(weight, plain)
            elif hasattr(weight, "CB"):
                weight.data = torch.empty(weight.shape, dtype=torch.int8)
                weight.CB, weight.SCB = weight.data, torch.empty(len(weight))
            else:
                continue
            if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                bias.data = bias.data.to(plain)


def _pack_4bit(weight: Any, dtype: torch.dtype) -> None:
    """On the meta device: two entries a byte, and the state of `bitsandbytes.functional.quantize_4bit`."""
    from bitsandbytes.functional import QuantState  # noqa: PLC0415 - slow, rarely needed

    blocks = -(-weight.numel() // weight.blocksize)
    codes, scales = torch.empty(16), torch.empty(blocks)
    known = {"shape": weight.shape, "code": codes, "blocksize": weight.blocksize, "quant_type": weight.quant_type}
    known["dtype"] = dtype
    if weight.compress_statistics:
        nested = QuantState(torch.empty(-(-blocks // _NESTED)), code=torch.empty(_NESTED), blocksize=_NESTED)
        scales, known["offset"], known["state2"] = scales.to(torch.uint8), torch.empty(()), nested
    state = QuantState(scales, **known)
    weight.data = torch.empty(-(-weight.numel() // 2), 1, dtype=torch.uint8)
    weight.quant_state, weight.bnb_quantized = state, True


def keep_as_loaded(model: nn.Module) -> None:
    """Let forward passes leave 4-bit matrices as they are, so that training may go on with them.

    On CPUs with bfloat16 instructions bitsandbytes 0.50 reorders them for evaluation, rounds their scales on the way
    there and back, and does not undo it when training goes on. The first forward pass casts their biases to what they
    multiply in, for good: that is done here, before anybody takes note of what is frozen.
    """
    from bitsandbytes.nn import Linear4bit  # noqa: PLC0415 - slow, rarely needed

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            if module.bias is not None and module.compute_dtype is not None:
                module.bias.data = module.bias.data.to(module.compute_dtype)


def base_weight(linear: nn.Linear) -> Tensor:
    """(O, I) values that the matrix multiplies by, unpacked if need be; detached."""
    if not is_quantized(linear):
        return linear.weight.detach()
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight  # noqa: PLC0415 - slow, rarely needed

    if getattr(getattr(linear.weight, "quant_state", None), "packing_format_for_cpu", False):
        linear.state_dict()  # evaluation on the CPU reorders 4-bit weights; saving puts them in order again
    # a fresh 8-bit layer keeps its scales in the weight, a used one in its state
    weight: Any = linear.weight
    value: Tensor = dequantize_bnb_weight(weight, getattr(linear, "state", None))
    return value.detach()
