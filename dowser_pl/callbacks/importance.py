"""The importance pass inside a Trainer: what the cache holds, what is still to measure, when it is enough."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from tqdm.auto import tqdm

from dowser_pl import sharding
from dowser_pl.callbacks.identity import identity
from dowser_pl.methods import Agreement, Method
from dowser_pl.probing import (
    FACTORS,
    Cache,
    Factors,
    Probe,
    Prompt,
    measure,
    probing_mode,
    write_prompts,
)
from dowser_pl.probing.batches import aligned
from dowser_pl.probing.images import noise_images

__all__ = ["Importance", "ImportancePass"]

_FIRST_TRY = 32  # prompts with which `num_prompts: auto` begins; doubled until it is enough
_SMALL = 1 << 28  # bytes of a cache file that may hold more than was asked for
_CHUNK = 64  # prompts whose factors are held one by one before groups are formed


@dataclass(frozen=True)
class Importance:
    """What the pass gave.

    Attributes:
        factors: of every tuned matrix.
        agreement: of two halves of the prompts; None where there is nothing to split.
        seconds: by phase, ``prompts`` and ``probes``; empty when all came from the cache.
        path: the file they lie in; None without a cache.
    """

    factors: Factors
    agreement: Agreement | None
    seconds: dict[str, float]
    path: Path | None


@dataclass
class ImportancePass:
    """Factors of the base model, on every process.

    Args:
        trainer: its precision and processes.
        pl_module: the model and its processor.
        layers: run-time name -> matrix.
        method: what it needs is measured.
        probe: settings.
        agree: agreement of two halves of the given factors.
    """

    trainer: Trainer
    pl_module: Any
    layers: dict[str, nn.Linear]
    method: Method
    probe: Probe
    agree: Callable[[Factors], Agreement | None]
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, cache_dir: Path | None, factors_file: Path | None) -> Importance:
        """Factors from the cache as far as it holds them, else measured, and then cached.

        Args:
            cache_dir: the folder of the cache; None = none.
            factors_file: read exactly this file instead, measure nothing.

        Raises:
            ValueError: if a file is damaged or belongs to something else.
        """
        cache = self._cache(cache_dir or Path())
        if factors_file is not None:
            factors = self._enough(sharding.from_first(lambda: cache.load(factors_file)), factors_file)
            return Importance(factors, self.agree(factors), {}, factors_file)
        path, stored = self._stored(cache) if cache_dir is not None else (None, None)
        whole = stored if stored is not None else Factors({}, 0, cache.prompts_per_row)
        known = whole.num_prompts
        factors, whole, agreement = self._converge(whole, cache)
        if cache_dir is not None and (path is None or whole.num_prompts > known or known == 0):
            notes = {"agreement": agreement.as_dict() if agreement else None, "method": self.method.settings()}
            path = sharding.from_first(lambda: cache.save(whole, notes))
            seconds = ", ".join(f"{phase} {duration:.1f} s" for phase, duration in self.seconds.items())
            rank_zero_info(f"Importance written to {path} ({seconds})")
        elif path is not None:
            rank_zero_info(f"Importance of this model is known: {path}")
        return Importance(factors.grouped(self.method.prompts_per_row), agreement, self.seconds, path)

    def _cache(self, folder: Path) -> Cache:
        everything = self.method.needs <= set(FACTORS) and self._keep_all()
        statistics = frozenset(FACTORS) if everything else frozenset(self.method.needs)
        rows = 1 if everything else self.method.prompts_per_row
        whose = sharding.from_first(lambda: identity(self.pl_module, self.probe, str(self.trainer.precision)))
        return Cache(folder, whose, list(self.layers), statistics, rows)

    def _keep_all(self) -> bool:
        if self.probe.keep != "auto":
            return self.probe.keep == "all"
        widths = sum(layer.in_features + 2 * layer.out_features for layer in self.layers.values())
        prompts = self.probe.max_prompts if self.probe.num_prompts == "auto" else self.probe.num_prompts
        return 4 * widths * prompts <= _SMALL

    def _stored(self, cache: Cache) -> tuple[Path | None, Factors | None]:
        found = sharding.from_first(cache.find)
        if found is not None:
            return found
        for line in sharding.from_first(cache.near_misses):
            rank_zero_info(f"Not this importance, though of the same weights: {line}")
        return None, None

    def _enough(self, factors: Factors, path: Path) -> Factors:
        wanted = self.probe.num_prompts
        enough = factors if wanted == "auto" else factors.first(int(wanted))
        if wanted not in ("auto", enough.num_prompts):
            raise ValueError(
                f"{path} holds {factors.num_prompts} prompts in rows of {factors.prompts_per_row}, expected {wanted}; "
                f"set --dowser.probe.num_prompts {factors.num_prompts}, or probe again"
            )
        return enough

    def _converge(self, whole: Factors, cache: Cache) -> tuple[Factors, Factors, Agreement | None]:
        """The factors asked for, all there are, and the agreement of the former's halves."""
        if self.probe.num_prompts != "auto":
            whole = self._grow(whole, self.probe.num_prompts, cache)
            factors = whole.first(self.probe.num_prompts)
            agreement = self._halves_agree(factors)
            return factors, whole, agreement
        num_prompts = min(_FIRST_TRY, self.probe.max_prompts)
        while True:
            whole = self._grow(whole, num_prompts, cache)
            factors = whole.first(num_prompts)
            agreement = self._halves_agree(factors)
            if agreement is None:
                raise ValueError(
                    "num_prompts auto compares two halves of the prompts, which this method and estimator do not keep "
                    "apart; set --dowser.probe.num_prompts to a number"
                )
            if agreement.overlap >= self.probe.target_overlap:
                return factors, whole, agreement
            if num_prompts >= self.probe.max_prompts:
                rank_zero_warn(
                    f"the masks of two halves of {num_prompts} prompts overlap by {agreement.overlap:.3f}, below "
                    f"dowser.probe.target_overlap {self.probe.target_overlap}; raise dowser.probe.max_prompts"
                )
                return factors, whole, agreement
            num_prompts = min(2 * num_prompts, self.probe.max_prompts)

    def _halves_agree(self, factors: Factors) -> Agreement | None:
        agreement = self.agree(factors.grouped(self.method.prompts_per_row))
        if agreement is not None:
            rank_zero_info(f"{factors.num_prompts} prompts: {agreement} between their halves")
        return agreement

    def _grow(self, whole: Factors, num_prompts: int, cache: Cache) -> Factors:
        """``whole``, continued until it has the first ``num_prompts`` prompts."""
        known = whole.first(num_prompts)
        if known.num_prompts == num_prompts:
            return whole
        missing = range(known.num_prompts, num_prompts)
        # sums over prompts are made in one go; rows are made in chunks that hold whole groups
        rows = cache.prompts_per_row
        size = max(rows, _CHUNK // rows * rows) if cache.statistics <= set(FACTORS) else num_prompts
        model = self.pl_module.network if self.probe.noise_images else self.pl_module.text_model()
        bar = tqdm(total=len(missing), desc="Importance pass", unit="prompt", disable=sharding.rank() > 0)
        with bar, probing_mode(model), torch.enable_grad(), self.trainer.precision_plugin.forward_context():
            prompts = self._prompts(model, missing)
            start = time.monotonic()
            for chunk in aligned(missing, size):
                measured = measure(
                    model,
                    self.layers,
                    [prompts[index - missing.start] for index in chunk],
                    self.probe,
                    cache.statistics,
                    chunk.start,
                    bar.update,
                    self.pl_module.text_inputs,
                )
                known = known.followed_by(measured.grouped(rows))
            bar.update(len(missing) - bar.n)  # other processes did the rest
            self.seconds["probes"] = self.seconds.get("probes", 0.0) + time.monotonic() - start
        return known

    def _prompts(self, model: Any, indices: range) -> list[Prompt]:
        """Written by the first process for all: in half precision another batch would write another text."""
        start = time.monotonic()
        processor, probe = self.pl_module.processor, self.probe

        def images(batch: range) -> list[dict[str, torch.Tensor]]:
            return noise_images(processor, probe, batch)

        def write() -> list[Prompt]:
            with_images = images if probe.noise_images else None
            return write_prompts(model, processor.tokenizer, probe, indices, with_images, self.pl_module.text_inputs)

        prompts = sharding.from_first(write)
        self.seconds["prompts"] = self.seconds.get("prompts", 0.0) + time.monotonic() - start
        return prompts
