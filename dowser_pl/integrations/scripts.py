"""Importance and masks for a script: two calls, with the numbers of `fit`, and files that both read.

    importance = measure_importance(model, processor, cache_dir="runs/cache")
    masks = choose_masks(importance, ModelDowser(update_ratio=0.1))

What is measured, cached and chosen is what `python -m dowser_pl fit` measures, caches and chooses with the same
settings, bit for bit.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from dowser_pl.callbacks.dowser.importance import Precision
from dowser_pl.callbacks.dowser.masks import MaskBuilder
from dowser_pl.callbacks.dowser.rows import RowBank
from dowser_pl.distributed.models import device_of
from dowser_pl.errors import DowserError, MissingFileError
from dowser_pl.files.atomic import atomic_path, check_writable
from dowser_pl.functional.masks import PackedMasks
from dowser_pl.importance import Factors, Probe, Rows
from dowser_pl.integrations.plain import left_as_it_was
from dowser_pl.integrations.protectable import Protectable
from dowser_pl.methods import Agreement, BeforeFit, Layer, Lora, ModelDowser, Ranking
from dowser_pl.models.layers import TARGETS
from dowser_pl.patches.patch import tensor_digest

__all__ = ["Importance", "Masks", "check_method", "choose_masks", "measure_importance"]


@dataclass(frozen=True)
class Importance:
    """What the importance pass found out about a model.

    Attributes:
        of: the model.
        factors: thin statistics of every matrix.
        agreement: of two halves of the prompts; None where the method does not rank entries.
        seconds: by phase, `prompts` and `probes`; empty where all came from the cache.
        path: of the file in the cache; None without one.
        digests: matrix -> content hash of its weights, which must still be these when masks are chosen.
    """

    of: Protectable
    factors: Factors
    agreement: Agreement | None
    seconds: Mapping[str, float]
    path: Path | None
    digests: Mapping[str, str]

    def scores(self, name: str, method: Ranking | None = None) -> Tensor:
        """(O, I) float32 score of every weight of a matrix, low = trained first.

        Args:
            name: of the matrix, as in `model.named_modules()`.
            method: that scores; None = Model-Dowser.

        Raises:
            DowserError: if there is no such matrix, or the method asks for what was not measured.
        """
        if name not in self.factors.layers:
            raise DowserError(f"got {name!r}, expected one of: {', '.join(self.factors.layers)}")
        method = method or ModelDowser()
        check_method(method)
        _check_base(self, [name])
        measured: dict[str, Any] = _measured_for(method, self.factors).layers.get(name, {})
        return method.score(Layer(name, self.of.tuned_layers()[name].weight.detach(), **measured))


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


def measure_importance(
    model: PreTrainedModel | Protectable,
    processor: Any = None,
    *,
    probe: Probe | None = None,
    method: BeforeFit | None = None,
    cache_dir: str | Path | None = None,
    targets: Sequence[str] = TARGETS,
    last_n_layers: int | None = None,
    autocast: torch.dtype | None = None,
) -> Importance:
    """Score the weights of a pretrained model without any data; the model is left as it was.

    Args:
        model: as `from_pretrained` gave it, on any device.
        processor: of the model.
        probe: how it is asked; None = as `fit` asks by default, with 128 prompts.
        method: whose statistics are measured; None = Model-Dowser.
        cache_dir: where what was measured is kept, and looked for; None = nowhere.
        targets: see `Protectable`; so `last_n_layers`.
        last_n_layers: of the decoder.
        autocast: compute in this half precision under autocast, as `bf16-mixed` does; None = in that of the weights.

    Raises:
        DowserError: if the model cannot be measured.
        OSError: if nothing can be written into `cache_dir`; known before anything is measured.
    """
    of = model if isinstance(model, Protectable) else Protectable(model, processor, targets, last_n_layers)
    method, probe = method or ModelDowser(), probe or Probe()
    folder = None if cache_dir is None else Path(cache_dir)
    check_method(method)
    if folder is not None:
        check_writable(folder, "cache_dir")
    with left_as_it_was(of.network):
        of.freeze_all_else()
        found = _builder(of, method, probe, folder, autocast).measure()
    return Importance(of, found.factors, found.agreement, found.seconds, found.path, _digests(of))


def choose_masks(importance: Importance, method: BeforeFit | None = None) -> Masks:
    """Which entries are trained, by what was measured.

    Args:
        importance: of the model, whose weights must still be the base.
        method: that chooses; None = Model-Dowser, which trains the tenth of each matrix that matters least.

    Raises:
        DowserError: if the method asks for what was not measured.
    """
    method = method or ModelDowser()
    check_method(method)
    _check_base(importance, importance.digests)
    builder = _builder(importance.of, method, Probe(), None, None)
    builder._factors = _measured_for(method, importance.factors)
    return Masks(PackedMasks.of(builder.masks_of(method)), method.settings(), importance.of)


def _builder(
    of: Protectable, method: BeforeFit, probe: Probe, cache_dir: Path | None, autocast: torch.dtype | None
) -> MaskBuilder:
    precision = _precision(of.network, autocast)
    bank = RowBank(precision, of, Rows(), cache_dir, lambda: of.base_model().fingerprint)
    return MaskBuilder(precision, of, of.tuned_layers(), method, probe, cache_dir, None, bank)


def _digests(of: Protectable, names: Iterable[str] | None = None) -> dict[str, str]:
    layers = of.tuned_layers()
    return {name: tensor_digest(layers[name].weight.detach()) for name in (layers if names is None else names)}


def _check_base(importance: Importance, names: Iterable[str]) -> None:
    """Masks are never computed on weights that were already tuned."""
    now = _digests(importance.of, names)
    moved = [name for name, found in now.items() if found != importance.digests[name]]
    if moved:
        raise DowserError(
            f"the weights of {moved[0]} are not those that were measured ({len(moved)} of {len(now)} matrices), "
            "expected the base: masks are never computed on weights that were already tuned. Fix: load the model "
            "again, or choose before it is trained"
        )


def check_method(method: object) -> None:
    """Refuse, with a DowserError, a method that decides at another time than before training, or a class."""
    if not isinstance(method, BeforeFit) or isinstance(method, Lora):
        raise DowserError(
            f"got {method if isinstance(method, type) else type(method).__name__}, expected a method that chooses "
            "entries before training, such as ModelDowser(update_ratio=0.1). Fix: others need the callback "
            "(lightning.Trainer), or python -m dowser_pl fit"
        )


_NAMES = {torch.float64: "64-true", torch.float32: "32-true", torch.bfloat16: "bf16-true", torch.float16: "16-true"}


def _precision(network: PreTrainedModel, autocast: torch.dtype | None) -> Precision:
    if autocast is None:
        return Precision(_NAMES[network.dtype])
    if autocast not in (torch.bfloat16, torch.float16):
        raise DowserError(
            f"got autocast {autocast}, expected torch.bfloat16, torch.float16, or None for that of weights"
        )
    name = _NAMES[autocast].replace("true", "mixed")
    context: Any = partial(torch.autocast, device_of(network).type, autocast)
    return Precision(name, context)


def _measured_for(method: BeforeFit | Ranking, factors: Factors) -> Factors:
    """What a method takes of what was measured, perhaps for another one."""
    if not method.needs:
        return Factors({}, 0)
    missing = set(method.needs) - factors.statistics
    rows = factors.prompts_per_row
    if missing or rows not in (1, method.prompts_per_row):
        got = ", ".join(sorted(factors.statistics)) if missing else f"means of {rows} prompts"
        wanted = ", ".join(sorted(missing)) if missing else f"means of {method.prompts_per_row}"
        raise DowserError(
            f"{type(method).__name__} asks for {wanted}, got {got}, which were measured for another method. Fix: "
            f"measure_importance(..., method={type(method).__name__}(...))"
        )
    return factors.grouped(method.prompts_per_row)
