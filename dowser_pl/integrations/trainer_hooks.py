"""What a Hugging Face `Trainer` put around a model, set aside for a while, and what frozen embeddings ask for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel, TrainingArguments

__all__ = ["as_loaded", "let_inputs_take_gradients"]


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
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):  # the older name
        if (getattr(args, name, None) or {}).get("use_reentrant"):
            model.enable_input_require_grads()
            return
