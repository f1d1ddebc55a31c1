"""Greedy answers in batches."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from dowser_pl.spread_models import generating, spread_model

__all__ = ["greedy_answers"]


def greedy_answers(model: PreTrainedModel, tokenizer: Any, inputs: dict[str, Tensor], max_new_tokens: int) -> list[str]:
    """Greedy answers to left-padded prompts, with a KV cache.

    Where the weights are spread over processes, all must call it together; it goes on until the last one is done.

    Args:
        model: image-text-to-text model in eval mode.
        tokenizer: decodes the answers.
        inputs: what the processor made of a batch, ``input_ids`` (B, T) among it.
        max_new_tokens: longest answer.

    Returns:
        B strings without special tokens and surrounding space.
    """
    greedy = GenerationConfig(  # the model's own sampling settings must not reach the evaluation
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with generating(model):
        tokens = model.generate(**inputs, generation_config=greedy, synced_gpus=spread_model(model))  # type: ignore[operator]
    prompt = inputs["input_ids"]
    if torch.equal(tokens[:, : prompt.shape[1]], prompt):  # encoder-decoders do not repeat the prompt
        tokens = tokens[:, prompt.shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
