"""What the importance pass leaves behind: two or three thin factors per matrix, and their file.

Any update ratio and either estimator can be read from the factors without probing again. The file is one
safetensors file whose metadata says which weights and which settings it belongs to; a file that does not
match is refused, never reused.

Legend: N prompts, O outputs, I inputs of a matrix.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dowser_pl.files import atomic_path

__all__ = ["Factors", "LayerFactors", "load_factors", "save_factors"]

FORMAT = 1


@dataclass(frozen=True)
class LayerFactors:
    """Per-prompt vectors of one matrix, float32 on the CPU.

    Attributes:
        activation: (N, I) mean |h_j| over positions.
        abs_gradient: (N, O) mean |g_i| over probes and positions.
        square_gradient: (N, O) mean g_i^2 over probes and positions.
    """

    activation: Tensor
    abs_gradient: Tensor
    square_gradient: Tensor

    @staticmethod
    def concatenate(parts: Sequence["LayerFactors"]) -> "LayerFactors":
        """Factors of all prompts, from those of consecutive batches."""
        return LayerFactors(
            *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(LayerFactors))
        )


@dataclass(frozen=True)
class Factors:
    """Factors by run-time name of the matrix."""

    layers: dict[str, LayerFactors]

    def checked(self) -> "Factors":
        """Itself, if every number is finite.

        Raises:
            ValueError: naming the matrix; NaN or infinity come from overflow in half precision.
        """
        for name, layer in self.layers.items():
            for field in fields(layer):
                if not bool(torch.isfinite(getattr(layer, field.name)).all()):
                    raise ValueError(
                        f"the importance pass gave a {field.name.replace('_', ' ')} of {name} that is not finite; "
                        "use model.dtype bfloat16 or float32 for this model"
                    )
        return self


def save_factors(factors: Factors, path: Path, identity: Mapping[str, object]) -> None:
    """Write the factors atomically.

    Args:
        factors: what was measured.
        path: the file; its folder is made.
        identity: what the factors depend on (weights fingerprint, settings ...), JSON-able.
    """
    tensors = {
        f"{name}.{field.name}": getattr(layer, field.name).contiguous()
        for name, layer in factors.layers.items()
        for field in fields(layer)
    }
    metadata = {"format": str(FORMAT), "identity": json.dumps(identity, sort_keys=True)}
    with atomic_path(path, needed_bytes=sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        save_file(tensors, temporary, metadata)


def load_factors(path: Path, identity: Mapping[str, object], names: Sequence[str]) -> Factors:
    """Read factors that belong to exactly these weights, settings and matrices.

    Args:
        path: a file written by :func:`save_factors`.
        identity: what the present run would measure.
        names: the matrices that are needed.

    Raises:
        ValueError: if the file is damaged or belongs to something else; the message says what differs.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _refuse_foreign(path, metadata, identity)
            missing = [name for name in names if f"{name}.activation" not in file.keys()]  # noqa: SIM118
            if missing:
                raise ValueError(
                    f"{path} has no factors of {len(missing)} tuned matrices, first {missing[0]!r}; "
                    "delete the file to probe again"
                )
            return Factors(
                {
                    name: LayerFactors(*(file.get_tensor(f"{name}.{f.name}") for f in fields(LayerFactors)))
                    for name in names
                }
            ).checked()
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable importance cache ({error}); delete it to probe again") from error


def _refuse_foreign(path: Path, metadata: Mapping[str, str], identity: Mapping[str, object]) -> None:
    found = json.loads(metadata.get("identity", "{}"))
    wanted = json.loads(json.dumps(identity))
    differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if metadata.get("format") != str(FORMAT) or differing:
        details = "; ".join(f"{k}: got {found.get(k)!r}, expected {wanted.get(k)!r}" for k in differing)
        raise ValueError(
            f"{path} holds the importance of another model or of other settings ({details or 'file format'}); "
            "delete it or name another cache folder with --dowser.cache_dir"
        )
