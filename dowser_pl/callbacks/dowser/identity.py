"""What importance depends on: a cache that differs in any of these belongs to something else."""

import json
from dataclasses import asdict
from typing import Any

from dowser_pl.importance import Probe, digest, fingerprint

__all__ = ["identity"]


def identity(pl_module: Any, probe: Probe, precision: str) -> dict[str, Any]:
    """Weights, what the model computes with them, what writes the prompts, and how it is probed; JSON-able."""
    network, processor = pl_module.network, pl_module.processor
    return {
        "weights": fingerprint(network),
        "model": digest(_behaviour(network)),
        "processor": digest(_text_and_images(processor, probe.noise_images)),
        "ending": asdict(pl_module.ending()),
        "probe": probe.identity(),
        "precision": precision,
    }


def _behaviour(network: Any) -> dict[str, Any]:
    """What the same weights compute: activations, rotary settings, attention ..., but not where they lie."""
    settings = json.loads(network.config.to_json_string(use_diff=False))
    for unrelated in ("_name_or_path", "transformers_version"):
        settings.pop(unrelated, None)
    parts = [(name, part) for name, part in network.named_modules() if hasattr(part, "config")]
    return settings | {"attention": {name: part.config._attn_implementation for name, part in parts}}


def _text_and_images(processor: Any, with_images: bool) -> dict[str, Any]:
    """What decides which prompts are drawn: vocabulary and special tokens, and for images how they are prepared."""
    tokenizer = processor.tokenizer
    settings = {"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    return settings | ({"images": processor.image_processor.to_json_string()} if with_images else {})
