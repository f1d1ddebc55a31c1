"""The importance pass inside a Trainer: cache, progress bar, precision."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from tqdm.auto import tqdm

from dowser_pl.probing import (
    Factors,
    Probe,
    fingerprint,
    load_factors,
    measure,
    probing_mode,
    save_factors,
    write_prompts,
)
from dowser_pl.probing.images import noise_images

__all__ = ["measure_importance"]


def measure_importance(
    trainer: Trainer,
    pl_module: Any,
    layers: dict[str, nn.Linear],
    probe: Probe,
    cache_dir: Path | None,
) -> Factors:
    """Factors of the base model, from the cache when it holds exactly these, else measured and cached.

    Raises:
        ValueError: if a cache file is damaged or belongs to something else.
    """
    identity = {
        "weights": fingerprint(pl_module.network),
        "model": _digest(_behaviour(pl_module.network)),
        "processor": _digest(_text_and_images(pl_module.processor, probe.noise_images)),
        "probe": probe.identity(),
        "precision": str(trainer.precision),
        "layers": _digest(list(layers)),
    }
    path = None if cache_dir is None else cache_dir / f"{_digest(identity)}.safetensors"
    if path is not None and path.exists():
        rank_zero_info(f"Importance of this model is known: {path}")
        return load_factors(path, identity, list(layers))
    factors = _measure(trainer, pl_module, layers, probe)
    if path is not None:
        save_factors(factors, path, identity)
        rank_zero_info(f"Importance written to {path}")
    return factors


def _measure(trainer: Trainer, pl_module: Any, layers: dict[str, nn.Linear], probe: Probe) -> Factors:
    model = pl_module.network if probe.noise_images else pl_module.text_model()
    images = noise_images(pl_module.processor, probe) if probe.noise_images else None
    bar = tqdm(total=probe.num_prompts, desc="Importance pass", unit="prompt", disable=not trainer.is_global_zero)
    with bar, probing_mode(model), torch.enable_grad(), trainer.precision_plugin.forward_context():
        prompts = write_prompts(model, pl_module.processor.tokenizer, probe, images, pl_module.text_inputs)
        return measure(model, layers, prompts, probe, bar.update, pl_module.text_inputs)


def _behaviour(network: Any) -> dict[str, Any]:
    """What the same weights compute: activations, rotary settings, attention ..., but not where they lie."""
    settings = json.loads(network.config.to_json_string(use_diff=False))
    for unrelated in ("_name_or_path", "transformers_version"):
        settings.pop(unrelated, None)
    return settings | {"attention": network.config._attn_implementation}


def _text_and_images(processor: Any, with_images: bool) -> dict[str, Any]:
    """What decides which prompts are drawn: vocabulary and special tokens, and for images how they are prepared."""
    tokenizer = processor.tokenizer
    settings = {"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    return settings | ({"images": processor.image_processor.to_json_string()} if with_images else {})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
