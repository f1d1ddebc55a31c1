"""What is done to a model that a Hugging Face `Trainer` has prepared: gradients masked, its wrapping set aside."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

__all__ = ["as_loaded", "let_inputs_take_gradients", "masking"]


def masking(mask: Tensor) -> Callable[[Tensor], None]:
    """What makes gradients of frozen entries zero (also NaN) as soon as they are there, before any norm is taken.

    Under DDP that is before they are averaged; all processes have the same mask.

    Args:
        mask: (O, I) bool, True = trained.
    """
    frozen = ~mask

    @torch.no_grad()
    def hook(weight: Tensor) -> None:
        if weight.grad is not None:
            weight.grad.masked_fill_(frozen, 0)

    return hook


@contextmanager
def as_loaded(model: PreTrainedModel) -> Iterator[None]:
    """Without what accelerate put around the forward pass: autocast, and outputs made float32."""
    own: dict[str, Any] = vars(model)
    wrapped = own.get("forward") if "_original_forward" in own else None
    if wrapped is None:
        yield
        return
    own["forward"] = own["_original_forward"]
    try:
        yield
    finally:
        own["forward"] = wrapped


def let_inputs_take_gradients(args: TrainingArguments, model: PreTrainedModel) -> None:
    """Embeddings are frozen, and checkpointing of the older kind passes no gradient on where no input takes one."""
    settings: Any = getattr(args, "activation_checkpointing_kwargs", None) or args.gradient_checkpointing_kwargs
    if (settings or {}).get("use_reentrant"):
        model.enable_input_require_grads()
