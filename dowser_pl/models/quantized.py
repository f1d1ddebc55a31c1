"""Weights of bitsandbytes: 4 or 8 bits that can be read, so that they can be scored, but not tuned."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from dowser_pl.errors import DowserError

__all__ = ["Quantization", "base_weight", "is_quantized", "keep_as_loaded", "quantization_options"]

Quantization = Literal["none", "8bit", "4bit"]


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


def keep_as_loaded(model: nn.Module) -> None:
    """Let evaluation leave 4-bit weights as they are, so that training may go on with them.

    On CPUs with bfloat16 instructions bitsandbytes 0.50 reorders them for evaluation, rounds their scales on the way
    there and back, and does not undo it when training goes on.
    """
    from bitsandbytes.nn import Linear4bit  # noqa: PLC0415 - slow, rarely needed

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


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
