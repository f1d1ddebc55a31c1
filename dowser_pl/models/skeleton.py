"""A model without its weights: shapes and dtypes alone, from its config."""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from dowser_pl.models.loading import Dtype, read_config
from dowser_pl.models.sources import explained, find_source

__all__ = ["skeleton"]


def skeleton(
    path: str, *, dtype: Dtype = "auto", eager: bool = False, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model that ``load_model`` would load, on the meta device; reads ``config.json`` and nothing else.

    Args:
        path: hub id, local folder, or "embedded:world".
        dtype: of the weights; "auto" takes that of the config, float32 where it names none.
        eager: attention that is not fused.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: not an image-text-to-text model.
    """
    config: Any = read_config(path, find_source(path), trust_remote_code)
    with explained(path):
        chosen = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
        options = {"attn_implementation": "eager"} if eager else {}
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForImageTextToText.from_config(
                config, dtype=chosen, trust_remote_code=trust_remote_code, **options
            )
    return model
