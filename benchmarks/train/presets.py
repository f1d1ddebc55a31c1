"""The models and batches of the benchmark of training forms."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dowser_pl.methods import Layer, Magnitude, Method, Random, build_masks
from dowser_pl.models.layers import find_blocks, find_layers
from probe.models import PRESETS as PROBED
from probe.models import Preset, build_model

__all__ = ["PRESETS", "Subject", "TrainPreset"]

IMAGE_AND_SPECIAL = 3  # tokens that random text leaves out


@dataclass(frozen=True)
class TrainPreset:
    """A model and how it is trained.

    Args:
        model: its sizes.
        rows: of a batch.
        tokens: of a row.
        rounds: how often each form is built and timed, taking turns.
        steps: timed in each round, after one that is not.
        update_ratio: trainable share.
        magnitude: mask by magnitude, on the device itself; else at random.
        gradient_checkpointing: recompute activations.
        rank: of LoRA.
    """

    model: Preset
    rows: int = 2
    tokens: int = 128
    rounds: int = 2
    steps: int = 3
    update_ratio: float = 0.1
    magnitude: bool = False
    gradient_checkpointing: bool = False
    rank: int = 16


PRESETS = {
    "tiny": TrainPreset(PROBED["tiny"], 2, 16, steps=2),
    "60m": TrainPreset(PROBED["60m"], 2, 64),
    "200m": TrainPreset(Preset(1024, 2816, 16, 16, 8192), 1, 128),
    "7b": TrainPreset(PROBED["7b"], 1, 1024, rounds=1, steps=5, magnitude=True, gradient_checkpointing=True),
}


class Subject:
    """A model that waits for a form of training: its matrices, their masks and batches.

    Args:
        preset: which.

    Attributes:
        model: in train mode; its tuned matrices alone take a gradient.
        layers: run-time name -> matrix.
    """

    def __init__(self, preset: TrainPreset) -> None:
        self.preset = preset
        self.model: PreTrainedModel = build_model(preset.model, seed=0)
        self.layers: dict[str, nn.Linear] = find_layers(self.model, None, ["attn", "mlp"])
        if preset.gradient_checkpointing:
            new_name = getattr(self.model, "activation_checkpointing_enable", None)  # in recent transformers
            (new_name or self.model.gradient_checkpointing_enable)({"use_reentrant": False})
            self.model.disable_input_require_grads()
        self.model.train().requires_grad_(False)
        for layer in self.layers.values():
            layer.weight.requires_grad_(True)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Run-time name -> (O, I) parameter."""
        return {name: layer.weight for name, layer in self.layers.items()}

    def masks(self) -> dict[str, Tensor]:
        """Name -> (O, I) bool, as the callback makes them."""
        ratio = self.preset.update_ratio
        method: Method = Magnitude(ratio) if self.preset.magnitude else Random(ratio)
        blocks = find_blocks(self.model, self.layers)
        return dict(build_masks(method, blocks, lambda name: Layer(name, self.layers[name].weight.detach())))

    def batch(self, number: int) -> dict[str, Tensor]:
        """Random text of full length; the same for the same number."""
        generator = torch.Generator().manual_seed(number)
        shape = (self.preset.rows, self.preset.tokens)
        tokens = torch.randint(IMAGE_AND_SPECIAL, self.preset.model.vocab_size, shape, generator=generator)
        tokens = tokens.to(self.model.device)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
