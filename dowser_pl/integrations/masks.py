"""Masks for a script: chosen by what was measured, kept in a file, whatever chose them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dowser_pl.errors import DowserError, MissingFileError
from dowser_pl.files.atomic import atomic_path
from dowser_pl.functional.masks import PackedMasks
from dowser_pl.integrations.importance import Importance
from dowser_pl.integrations.protectable import Protectable
from dowser_pl.methods import BeforeFit, ModelDowser

__all__ = ["Masks", "choose_masks"]


class Masks(Mapping[str, Tensor]):
    """Which entries of each matrix are trained: name -> (O, I) bool, True = trained. Kept as bits.

    Args:
        packed: the masks.
        method: settings of the method that chose them, for the patch; None = unknown.
        of: the model that they were chosen for; None = unknown.
    """

    def __init__(
        self, packed: PackedMasks, method: Mapping[str, Any] | None = None, of: Protectable | None = None
    ) -> None:
        self.packed, self.method, self.of = packed, None if method is None else dict(method), of

    def __getitem__(self, name: str) -> Tensor:
        return self.packed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.packed)

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """Name -> (entries that are trained, all entries)."""
        return {name: (int(mask.sum()), mask.numel()) for name, mask in self.items()}

    def save(self, path: str | Path) -> None:
        """Write them as a safetensors file of bools, atomically."""
        tensors = {name: mask.cpu() for name, mask in self.items()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"method": json.dumps(self.method)})

    @classmethod
    def load(cls, path: str | Path) -> "Masks":
        """Read what `save` wrote, or any safetensors file of (O, I) bools by the names of their matrices.

        Raises:
            DowserError: if the file is not there, or holds something else.
        """
        if not Path(path).is_file():
            raise MissingFileError(f"there is no file {path}, expected one that Masks.save wrote")
        try:
            tensors = load_file(path)
            with safe_open(path, "pt") as file:
                method = json.loads((file.metadata() or {}).get("method", "null"))
        except (SafetensorError, ValueError) as error:
            raise DowserError(f"{path} is damaged ({error}), expected what Masks.save wrote; choose again") from error
        odd = [name for name, mask in tensors.items() if mask.dtype != torch.bool or mask.ndim != 2]
        if odd or not tensors:
            what = f"{odd[0]} holds no bools of a matrix" if odd else "nothing is in it"
            raise DowserError(f"{path}: {what}, expected the masks of matrices")
        return cls(PackedMasks.of(tensors.items()), method)


def choose_masks(importance: Importance, method: BeforeFit | None = None) -> Masks:
    """Which entries are trained, by what was measured.

    Args:
        importance: of the model, whose weights must still be the base.
        method: that chooses; None = Model-Dowser, which trains the tenth of each matrix that matters least.

    Raises:
        DowserError: if the method asks for what was not measured.
    """
    method = method or ModelDowser()
    masks = PackedMasks.of(importance.builder(method).masks_of(method))
    return Masks(masks, method.settings(), importance.of)
