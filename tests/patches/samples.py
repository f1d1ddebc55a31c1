"""Small tuned models and their patches, made entry by entry with NumPy: an oracle that shares no code with ours."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from dowser_pl.masking.base_model import Change
from dowser_pl.patches.patch import save_patch, tensor_digest
from tests.tiny_models import make_processor_folder, tiny_llava

TUNED = ("q_proj.weight", "down_proj.weight")
HEAD = {"base": {"model": "tiny"}, "method": {"name": "test"}, "created_by": "a test"}


def save_base(folder: Path, dtype: torch.dtype = torch.float32, shard: str = "50GB") -> Path:
    """A model folder with its processor, in shards of at most so many bytes."""
    tiny_llava().to(dtype).save_pretrained(folder, max_shard_size=shard)
    return make_processor_folder(folder)


def tuned_llava(dtype: torch.dtype = torch.float32, seed: int = 1, share: float = 0.2) -> PreTrainedModel:
    """The base of `save_base` with a share of the entries of some matrices moved, and one norm as a whole."""
    model = tiny_llava().to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "language_model" in name and name.endswith(TUNED):
                mask = torch.rand(weight.shape, generator=generator) < share
                weight[mask] += torch.randn(int(mask.sum()), generator=generator).to(dtype) + 3
        model.model.language_model.norm.weight += seed
    return model


def save_tuned(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 1, shard: str = "50GB") -> Path:
    tuned_llava(dtype, seed).save_pretrained(folder, max_shard_size=shard)
    return make_processor_folder(folder)


def load_folder(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the safetensors files of a folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def raw(tensor: torch.Tensor) -> np.ndarray:
    """(entries, bytes of an entry) what is in memory."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().reshape(tensor.numel(), tensor.element_size())


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors agree in names, shapes, dtypes and every bit."""
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
        and np.array_equal(raw(one[name]), raw(other[name]))
        for name in one
    )


def naive_changes(base: Path, tuned: Path, runtime: dict[str, str] | None = None) -> dict[str, Change]:
    """Entries whose bytes differ, packed by NumPy."""
    before, after = load_folder(base), load_folder(tuned)
    changes = {}
    for name in before:
        differs = (raw(before[name]) != raw(after[name])).any(axis=1)
        if differs.any():
            whole = bool(differs.all())
            bits = torch.from_numpy(np.packbits(differs, bitorder="little"))
            values = after[name] if whole else after[name].flatten()[torch.from_numpy(differs)]
            shape, digest = tuple(before[name].shape), tensor_digest(before[name])
            changes[name] = Change(shape, None if whole else bits, values, digest, (runtime or {}).get(name))
    return changes


def make_patch(path: Path, base: Path, tuned: Path, runtime: dict[str, str] | None = None) -> Path:
    save_patch(path, naive_changes(base, tuned, runtime), HEAD)
    return path


def fingerprints(folder: Path) -> dict[str, str]:
    """Relative path -> digest of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
