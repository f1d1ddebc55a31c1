"""What a run knows of the model it began from, so that checkpoints and patches need not hold it.

Whoever loads such a checkpoint has the base already: it is compared tensor by tensor, then the trained values are
written into it. Keys are those of the module's state dict.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dowser_pl.distributed.tensors import digests, is_sharded, shape_of, to_local
from dowser_pl.errors import DowserError
from dowser_pl.files.digests import combined
from dowser_pl.functional.masks import unpack
from dowser_pl.masking.base import State
from dowser_pl.masking.sharded import local_state

__all__ = [
    "BaseModel",
    "Change",
]


@dataclass(frozen=True, eq=False)
class Change:
    """What a patch does to one tensor.

    Attributes:
        shape: of the tensor.
        mask: packed bits (see `functional.masks.pack`), uint8 on the CPU; None = the whole tensor.
        values: on the CPU, in the tensor's dtype: (entries,) with a mask, else of `shape`.
        base_sha256: `tensor_digest` of the whole tensor before the change.
        runtime: its name in the loaded model, if known.
    """

    shape: tuple[int, ...]
    mask: Tensor | None
    values: Tensor
    base_sha256: str
    runtime: str | None = None


_DRAWN = ".lora_A."  # an adapter's first numbers are of no file: drawn, which another processor rounds otherwise


@dataclass(frozen=True)
class BaseModel:
    """The base, described in plain data.

    Attributes:
        path: where it came from.
        tensors: key -> (dtype, shape, digest) of every tensor before training.
        keys: name of a masked matrix -> key of its weight.
        whole: keys of what is trained without a mask.
        saved_names: key of a trained tensor -> its name in the files of the model, where it has one.
        generation: tokens that a generation config of the tuned model names, those that end an answer among them.
    """

    path: str
    tensors: dict[str, tuple[str, tuple[int, ...], str]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)
    saved_names: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        path: str,
        tensors: Mapping[str, Tensor],
        keys: Mapping[str, str],
        whole: list[str],
        saved_names: Mapping[str, str],
        generation: Mapping[str, Any],
    ) -> "BaseModel":
        """Describe a model before it is trained; reads all of it once."""
        hashed = digests(tensors)
        described = {key: (_kind(value), tuple(shape_of(value)), hashed[key]) for key, value in tensors.items()}
        return cls(path, described, dict(keys), list(whole), dict(saved_names), dict(generation))

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint; `BaseModel(**content)` gives it back."""
        return dict(vars(self))

    @property
    def head(self) -> dict[str, Any]:
        """What a patch says of its base."""
        return {"model": self.path, "fingerprint": self.fingerprint, "generation": self.generation}

    @property
    def fingerprint(self) -> str:
        """One digest of all tensors."""
        return combined({key: described[-1] for key, described in self.tensors.items()})

    def frozen_digest(self, tensors: Mapping[str, Tensor], masked: Mapping[str, str]) -> str:
        """Content hash of all that must not change.

        Args:
            tensors: of the model as it is now.
            masked: name of a masked matrix -> digest of its frozen entries.
        """
        of_matrices = {self.keys[name]: value for name, value in masked.items()}
        untouched = {k: v for k, v in tensors.items() if k in self.tensors and k not in (*of_matrices, *self.whole)}
        return combined(of_matrices | digests(untouched))

    def frozen_digest_before(self, masked: Mapping[str, str]) -> str:
        """`frozen_digest` before training, whatever may have changed since.

        Args:
            masked: name of a masked matrix -> digest of its frozen entries then.
        """
        of_matrices = {self.keys[name]: value for name, value in masked.items()}
        left = {key: described[-1] for key, described in self.tensors.items() if key not in (*of_matrices, *self.whole)}
        return combined(of_matrices | left)

    def left_out(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the entries."""
        return {key: tensor for key, tensor in tensors.items() if key in self.whole or key not in self.tensors}

    @torch.no_grad()
    def restore(
        self, stored: Mapping[str, Tensor], entries: State, own: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Complete a checkpoint from the base, in whose memory the trained values are written.

        Args:
            stored: tensors that the checkpoint holds.
            entries: name of a masked matrix -> packed `mask` and trained `values`.
            own: tensors of the model that was loaded, which must be the base.

        Returns:
            All tensors of the tuned model, and the entries with the `base` values they replaced; of tensors that are
            sharded over processes, those of what is here.

        Raises:
            DowserError: if the model that was loaded is not the base; the message names the first tensor that differs.
        """
        odd = sorted(set(self.tensors) ^ set(own)) or sorted(set(self.whole) - set(stored))
        if odd:
            raise DowserError(
                f"the checkpoint and the model that was loaded do not belong together: the first tensor that only one "
                f"of them has is {odd[0]!r}. The checkpoint was made from {self.path}; give that with --model.path"
            )
        self._check(own)
        complete, state = dict(stored), {}
        names = {key: name for name, key in self.keys.items()}
        for key, (dtype, _, _) in self.tensors.items():
            here = to_local(own[key])
            base = here.to(getattr(torch, dtype))  # a run in half precision began from rounded weights
            if key in names:
                entry = entries[names[key]]
                entry = local_state(entry, own[key]) if is_sharded(own[key]) else entry
                mask = unpack(entry["mask"], base.shape).to(base.device)
                state[names[key]] = {**entry, "base": base[mask].cpu()}
                base = base.masked_scatter(mask, entry["values"].to(base))
            if base is not here:
                here.copy_(base)
            complete.setdefault(key, own[key])
        return complete, state

    def changes(self, entries: State, tensors: Mapping[str, Tensor]) -> dict[str, Change]:
        """What training changed, as a patch of the model's files.

        Args:
            entries: name of a masked matrix -> packed `mask` and trained `values`.
            tensors: those trained whole, and any others.

        Raises:
            DowserError: if a trained tensor is not one tensor in the files.
        """
        missing = [key for key in (*self.keys.values(), *self.whole) if key not in self.saved_names]
        if missing:
            raise DowserError(
                f"{missing[0]} is not stored as one tensor in the files of this model family, so no patch can name it; "
                "share the exported model folder instead"
            )
        trained: dict[str, tuple[Tensor | None, Tensor]] = {key: (None, tensors[key].cpu()) for key in self.whole}
        trained |= {self.keys[name]: (entry["mask"], entry["values"]) for name, entry in entries.items()}
        names = {key: f"{name}.weight" for name, key in self.keys.items()}
        return {
            self.saved_names[key]: self._change(key, names.get(key, key.removeprefix("model.")), mask, values)
            for key, (mask, values) in sorted(trained.items())
        }

    def _check(self, own: Mapping[str, Tensor]) -> None:
        """Refuse a model that is not the base."""
        for key, (dtype, _, _) in self.tensors.items():
            if own[key].itemsize < getattr(torch, dtype).itemsize:
                raise DowserError(
                    f"the checkpoint was made from {dtype} weights, and the model was loaded in {_kind(own[key])}, "
                    f"which has lost what cannot be brought back. Give --model.dtype {dtype} and the same "
                    "--trainer.precision"
                )
        found = digests(own, {key: getattr(torch, dtype) for key, (dtype, _, _) in self.tensors.items()})
        known = {key: expected for key, (_, _, expected) in self.tensors.items() if _DRAWN not in key}
        odd = next((key for key, expected in known.items() if found[key] != expected), None)
        if odd is not None:
            raise DowserError(
                f"the checkpoint holds only what was trained, and the model that was loaded is not its base: {odd} "
                f"differs. It was made from {self.path}; give that with --model.path"
            )

    def _change(self, key: str, runtime: str, mask: Tensor | None, values: Tensor) -> Change:
        dtype, shape, base = self.tensors[key]
        values = values.to(getattr(torch, dtype))
        if mask is not None and values.numel() == math.prod(shape):  # all of it
            mask, values = None, values.view(shape)
        return Change(tuple(shape), mask, values, base, runtime)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
