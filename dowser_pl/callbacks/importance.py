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
        "probe": probe.identity(),
        "precision": str(trainer.precision),
        "layers": hashlib.sha256("\n".join(layers).encode()).hexdigest(),
    }
    path = None if cache_dir is None else cache_dir / f"{_key(identity)}.safetensors"
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


def _key(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
