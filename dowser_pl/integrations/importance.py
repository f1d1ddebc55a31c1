"""The importance of a model's weights for a script: measured once, with the numbers of `fit` and files that both read.

    importance = measure_importance(model, processor, cache_dir="runs/cache")
    masks = choose_masks(importance, ModelDowser(update_ratio=0.1))

What is measured, cached and chosen is what `python -m dowser_pl fit` measures, caches and chooses with the same
settings, bit for bit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dowser_pl.callbacks.dowser.importance import ImportanceRunner, Precision, behaviour
from dowser_pl.callbacks.dowser.masks import MaskBuilder
from dowser_pl.callbacks.dowser.rows import RowBank
from dowser_pl.distributed.models import device_of
from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import check_writable
from dowser_pl.importance import Factors, Probe, Rows, digest, fingerprint, load_factors, read_head, save_factors
from dowser_pl.integrations.plain import check_autocast, check_plain, left_as_it_was
from dowser_pl.integrations.protectable import Protectable
from dowser_pl.methods import Agreement, BeforeFit, Layer, Lora, ModelDowser, Ranking
from dowser_pl.methods.agreement import sample_rows
from dowser_pl.models.layers import TARGETS, places_of
from dowser_pl.patches.patch import tensor_digest
from dowser_pl.reporting.plots.importance import plot_importance

__all__ = ["Importance", "check_method", "check_probe", "measure_importance"]


@dataclass(frozen=True)
class Importance:
    """What the importance pass found out about a model.

    Attributes:
        of: the model.
        factors: thin statistics of every matrix.
        agreement: of two halves of the prompts; None where the method does not rank entries.
        seconds: by phase, `prompts` and `probes`; empty where all came from a file.
        path: of the file in the cache, or that it was loaded from; None without one.
        digests: matrix -> content hash of its weights, which must still be these when masks are chosen.
        identity: tells all that the factors depend on, JSON-able, for a file.
    """

    of: Protectable
    factors: Factors
    agreement: Agreement | None
    seconds: Mapping[str, float]
    path: Path | None
    digests: Mapping[str, str]
    identity: Callable[[], Mapping[str, Any]]

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
        self._check_base([name])
        return method.score(self._layer(name, self._for(method)))

    def builder(self, method: BeforeFit) -> MaskBuilder:
        """What builds the masks of a method.

        Raises:
            DowserError: if the method asks for what was not measured, or the weights are not the base any more.
        """
        factors = self._for(method)
        self._check_base(self.digests)
        builder = _builder(self.of, method, Probe(), None, None)
        builder._factors = factors
        return builder

    def save(self, path: str | Path) -> None:
        """Write it as a file that `load` reads, and `fit` as `--dowser.factors_file` with the same settings.

        Raises:
            DowserError: if the weights are not the base any more, or nothing was measured.
        """
        if not self.factors.layers:
            raise DowserError(
                "nothing was measured, as the method asks for nothing but weights: there is nothing to keep. Fix: "
                "Masks.save, or measure_importance(..., method=ModelDowser())"
            )
        self._check_base(self.digests)
        notes = {"agreement": None if self.agreement is None else self.agreement.as_dict()}
        save_factors(self.factors, Path(path), self.identity(), notes)

    @classmethod
    def load(cls, path: str | Path, model: PreTrainedModel | Protectable, processor: Any = None) -> "Importance":
        """Read what `save` wrote, or a file of the cache.

        Args:
            path: of the file.
            model: that it is of; where matrices were chosen by `targets` or `last_n_layers`, a `Protectable` with them.
            processor: of the model, for who needs it later.

        Raises:
            DowserError: if the file is not there, damaged, of another model, or lacks a matrix.
        """
        of, path = model if isinstance(model, Protectable) else Protectable(model, processor), Path(path)
        head = read_head(path)
        known = {"weights": fingerprint(of.network), "model": digest(behaviour(of.network))}
        factors = load_factors(path, head["identity"] | known, of.tuned_layers())
        notes = (head["notes"] or {}).get("agreement")
        agreement = None if notes is None else Agreement.from_dict(notes)
        return cls(of, factors, agreement, {}, path, _digests(of), lambda: head["identity"])

    def plot(self, path: str | Path, method: Ranking | None = None) -> None:
        """Draw which matrices matter: the median score of each, by decoder layer and kind.

        Args:
            path: of the picture, .png, .pdf or .svg.
            method: that scores; None = Model-Dowser.

        Raises:
            DowserError: if the suffix is another one, or the method asks for what was not measured.
        """
        method = method or ModelDowser()
        factors = self._for(method)
        self._check_base(self.digests)
        places = places_of(self.of.network, self.digests)
        medians = {
            places[name]: float(method.score(sample_rows(self._layer(name, factors))).median()) for name in self.digests
        }
        plot_importance(medians, type(method).__name__, path)

    def _layer(self, name: str, factors: Factors) -> Layer:
        measured: dict[str, Any] = factors.layers.get(name, {})
        return Layer(name, self.of.tuned_layers()[name].weight.detach(), **measured)

    def _check_base(self, names: Iterable[str]) -> None:
        """Masks are never computed on weights that were already tuned."""
        check_plain(self.of.network)
        now = _digests(self.of, names)
        moved = [name for name, found in now.items() if found != self.digests[name]]
        if moved:
            raise DowserError(
                f"the weights of {moved[0]} are not those that were measured ({len(moved)} of {len(now)} matrices), "
                "expected the base: masks are never computed on weights that were already tuned. Fix: load the model "
                "again, or choose before it is trained"
            )

    def _for(self, method: BeforeFit | Ranking) -> Factors:
        """What a method takes of what was measured, perhaps for another one."""
        check_method(method)
        if not method.needs:
            return Factors({}, 0)
        missing = set(method.needs) - self.factors.statistics
        rows = self.factors.prompts_per_row
        if missing or rows not in (1, method.prompts_per_row):
            got = ", ".join(sorted(self.factors.statistics)) if missing else f"means of {rows} prompts"
            wanted = ", ".join(sorted(missing)) if missing else f"means of {method.prompts_per_row}"
            raise DowserError(
                f"{type(method).__name__} asks for {wanted}, got {got}, which were measured for another method. Fix: "
                f"measure_importance(..., method={type(method).__name__}(...))"
            )
        return self.factors.grouped(method.prompts_per_row)


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
    check_autocast(of.network, autocast)
    folder = None if cache_dir is None else Path(cache_dir)
    check_method(method)
    check_probe(probe)
    if folder is not None:
        check_writable(folder, "cache_dir")
    with left_as_it_was(of.network):
        of.freeze_all_else()
        builder = _builder(of, method, probe, folder, autocast)
        found = builder.measure()
    identity = ImportanceRunner(builder.precision, of, builder.layers, probe, builder.bank).cache_key
    return Importance(of, found.factors, found.agreement, found.seconds, found.path, _digests(of), identity)


def _builder(
    of: Protectable, method: BeforeFit, probe: Probe, cache_dir: Path | None, autocast: torch.dtype | None
) -> MaskBuilder:
    precision = _precision(of.network, autocast)
    bank = RowBank(precision, of, Rows(), cache_dir, lambda: of.base_model().fingerprint)
    return MaskBuilder(precision, of, of.tuned_layers(), method, probe, cache_dir, None, bank)


def _digests(of: Protectable, names: Iterable[str] | None = None) -> dict[str, str]:
    layers = of.tuned_layers()
    return {name: tensor_digest(layers[name].weight.detach()) for name in (layers if names is None else names)}


def check_method(method: object) -> None:
    """Refuse, with a DowserError, a method that decides at another time than before training, or a class."""
    if not isinstance(method, BeforeFit) or isinstance(method, Lora):
        raise DowserError(
            f"got {method if isinstance(method, type) else type(method).__name__}, expected a method that chooses "
            "entries before training, such as ModelDowser(update_ratio=0.1). Fix: others need the callback "
            "(lightning.Trainer), or python -m dowser_pl fit"
        )


def check_probe(probe: object) -> None:
    """Refuse, with a DowserError, what is no settings of the importance pass."""
    if not isinstance(probe, Probe):
        raise DowserError(f"got the probe {probe!r}, expected a Probe. Fix: such as Probe(num_prompts=128)")


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
