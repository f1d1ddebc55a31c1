"""The forms of training that are compared: whole matrices, masked densely, masked compactly, LoRA.

Protected forms do what the callback and the module do at every step: finite loss and gradients are checked, frozen
entries enforced, values written back. Full training and LoRA are plain PyTorch loops without checks.
"""
# ruff: noqa: E402

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# while it is imported, bitsandbytes asks for a package that only makes 4-bit models faster on a CPU
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

import bitsandbytes
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from dowser_pl.masking import (
    BaseModel,
    CompactEntries,
    DenseEntries,
    Protection,
    check_gradients,
    check_loss,
)
from dowser_pl.patches import save_patch
from train.presets import Subject

__all__ = ["FORMS", "Training"]

LR = 1e-5


class Training(ABC):
    """One model in training.

    Args:
        subject: its model is taken over.

    Attributes:
        parameters: what the optimizer trains.
        optimizer: AdamW of some kind.
    """

    parameters: list[nn.Parameter]
    optimizer: Optimizer

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.model: Any = subject.model
        self.steps = 0

    @property
    def trainable(self) -> int:
        """Entries that may move."""
        return sum(each.numel() for each in self.parameters)

    def step(self) -> None:
        """Forward, backward, optimizer and whatever the form adds."""
        self.optimizer.zero_grad()
        loss = self.model(**self.subject.batch(self.steps), use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.steps += 1

    def held(self) -> dict[str, int]:
        """Bytes of state beside weights, gradients and moments, by kind."""
        return {}

    @abstractmethod
    def checkpoint(self) -> dict[str, Any]:
        """What a checkpoint holds of weights and optimizer."""

    @abstractmethod
    def save_change(self, folder: Path) -> Path | None:
        """Write what was learnt, without the base; None where that is the whole model."""


class FullTraining(Training):
    """AdamW over whole matrices, nothing protected."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.parameters = list(subject.weights.values())
        self.optimizer = AdamW(self.parameters, lr=LR)

    def checkpoint(self) -> dict[str, Any]:
        """All weights and moments."""
        return {"state_dict": self.model.state_dict(), "optimizer_states": [self.optimizer.state_dict()]}

    def save_change(self, folder: Path) -> Path | None:  # noqa: ARG002
        """None."""
        return None


class ProtectedTraining(Training):
    """AdamW under a mask."""

    protection: type[Protection]

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.entries = self.protection(subject.weights, subject.masks())
        self.parameters = self.entries.parameters()
        self.optimizer = self.build_optimizer()

    def build_optimizer(self) -> Optimizer:
        """Plain AdamW."""
        return AdamW(self.parameters, lr=LR)

    @property
    def trainable(self) -> int:
        """Entries that may move."""
        return self.entries.num_trainable

    def step(self) -> None:
        """In the order of a run: zero, forward, backward, mask, check, step, write back."""
        self.optimizer.zero_grad()
        loss = self.model(**self.subject.batch(self.steps), use_cache=False).loss
        check_loss(loss, self.steps, 0, None)
        loss.backward()
        self.entries.mask_gradients()
        check_gradients(self.parameters, self.steps)
        self.optimizer.step()
        self.entries.after_step()
        self.steps += 1

    def checkpoint(self) -> dict[str, Any]:
        """Packed masks, values and moments; a reference to the base instead of the base."""
        base, entries = self._base(), self.entries.state_dict()
        for each in entries.values():
            del each["base"]
        return {
            "state_dict": base.left_out(self.model.state_dict()),
            "callbacks": {"Dowser": {"entries": entries, "base": base.to_dict()}},
            "optimizer_states": [self.optimizer.state_dict()],
        }

    def save_change(self, folder: Path) -> Path | None:
        """A patch: bits and values in the dtype of the weights."""
        path = folder / "patch.safetensors"
        save_patch(path, self._base().changes(self.entries.state_dict(), {}), {})
        return path

    def _base(self) -> BaseModel:
        """Described as it is now: digests that a run takes before training have the same size."""
        keys = {name: f"{name}.weight" for name in self.entries.weights}
        saved = {key: key for key in keys.values()}
        return BaseModel.of("random", self.model.state_dict(), keys, [], saved, {})


class DenseTraining(ProtectedTraining):
    """Whole matrices, frozen entries put back."""

    protection = DenseEntries

    def held(self) -> dict[str, int]:
        """Masks, once more as bits in host memory, and a copy of the matrices."""
        entries: Any = self.entries
        copies = {"masks": _nbytes(entries.masks.values()), "base": _nbytes(entries.base.values())}
        return copies | {"host": entries.packed_bytes}


class CompactTraining(ProtectedTraining):
    """Trainable entries as a parameter of their own."""

    protection = CompactEntries

    def held(self) -> dict[str, int]:
        """Values, indices, and in host memory the base values and packed masks."""
        entries: Any = self.entries
        kinds = entries.num_bytes()
        return {"entries": kinds["values"], "indices": kinds["indices"], "host": kinds["base"] + entries.packed_bytes}


class Compact8bitTraining(CompactTraining):
    """The same with the states of AdamW in 8 bits."""

    def build_optimizer(self) -> Optimizer:
        """AdamW of bitsandbytes."""
        return bitsandbytes.optim.AdamW8bit(self.parameters, lr=LR)


class LoraTraining(Training):
    """Low-rank adapters on the same matrices."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        subject.model.requires_grad_(False)
        config = LoraConfig(r=subject.preset.rank, lora_alpha=2 * subject.preset.rank, target_modules=[*subject.layers])
        self.model = get_peft_model(subject.model, config)
        self.parameters = [each for each in self.model.parameters() if each.requires_grad]
        self.optimizer = AdamW(self.parameters, lr=LR)

    def held(self) -> dict[str, int]:
        """The adapters."""
        return {"entries": _nbytes(self.parameters)}

    def checkpoint(self) -> dict[str, Any]:
        """Adapters and their moments."""
        return {
            "state_dict": get_peft_model_state_dict(self.model),
            "optimizer_states": [self.optimizer.state_dict()],
        }

    def save_change(self, folder: Path) -> Path | None:
        """The adapter file."""
        self.model.save_pretrained(folder)
        return folder / "adapter_model.safetensors"


FORMS: dict[str, type[Training]] = {
    "full": FullTraining,
    "dense": DenseTraining,
    "compact": CompactTraining,
    "compact_8bit": Compact8bitTraining,
    "lora": LoraTraining,
}


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
