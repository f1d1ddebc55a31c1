"""The importance of a model: what the cache holds, what is still to measure, and when it is enough.

`ImportancePass` is the pass on one or more processes, with its progress bar; `cache_key` is all that importance depends
on: a cache that differs in any of it belongs to something else.
"""

import json
import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from tqdm.auto import tqdm

from dowser_pl.distributed import collectives
from dowser_pl.distributed.models import is_sharded_model
from dowser_pl.errors import DowserError
from dowser_pl.importance import (
    FACTORS,
    Cache,
    Factors,
    Probe,
    Prompt,
    Request,
    digest,
    fingerprint,
    measure,
    probing_mode,
    write_prompts,
)
from dowser_pl.importance.batches import aligned
from dowser_pl.importance.prompts import noise_images
from dowser_pl.masking import TunedModule
from dowser_pl.methods import Agreement, Method
from dowser_pl.models.layers import picture_layers, places_of, text_inputs, text_model
from dowser_pl.models.qformer import QFORMER
from dowser_pl.models.text_only import reads_images, tokenizer_of

__all__ = ["Importance", "ImportancePass", "ImportanceRunner", "Precision", "behaviour", "cache_key"]

_CHUNK = 64  # prompts per process whose factors are held one by one before groups are formed
_SMALL = 1 << 28  # bytes of a cache file that may hold more than was asked for
_FIRST_TRY = 32  # prompts with which `num_prompts: auto` begins; doubled until it is enough


def cache_key(pl_module: TunedModule, probe: Probe, precision: str) -> dict[str, Any]:
    """Weights, what the model computes with them, what writes the prompts, and how it is probed; JSON-able."""
    network, processor = pl_module.network, pl_module.processor
    return {
        "weights": fingerprint(network),
        "model": digest(behaviour(network)),
        "processor": digest(_text_and_images(processor, probe.noise_images and reads_images(processor))),
        "ending": asdict(pl_module.ending()),
        "probe": probe.identity(),
        "precision": precision,
    }


def behaviour(network: Any) -> dict[str, Any]:
    """What the same weights compute: activations, rotary settings, attention ..., but not where they lie."""
    settings = json.loads(network.config.to_json_string(use_diff=False))
    for unrelated in ("_name_or_path", "transformers_version"):
        settings.pop(unrelated, None)
    parts = [(name, part) for name, part in network.named_modules() if hasattr(part, "config")]
    return settings | {"attention": {name: part.config._attn_implementation for name, part in parts}}


@dataclass(frozen=True)
class Precision:
    """What a model computes in.

    Args:
        name: as `trainer.precision` has it; importance depends on it.
        context: entered around forward and backward passes.
    """

    name: str
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @classmethod
    def of(cls, trainer: Trainer, network: nn.Module) -> "Precision":
        """The trainer's precision, but for weights that a strategy gathers in another dtype."""
        gathered = getattr(trainer.strategy, "param_dtype", None)
        kept = {str(weight.dtype).removeprefix("torch.") for weight in network.parameters()}
        other = f", gathered in {gathered}" if gathered is not None and kept != {gathered} else ""
        return cls(f"{trainer.precision}{other}", trainer.precision_plugin.forward_context)


def _text_and_images(processor: Any, with_images: bool) -> dict[str, Any]:
    """What decides which prompts are drawn: vocabulary and special tokens, and for images how they are prepared."""
    tokenizer = tokenizer_of(processor)
    settings = {"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    return settings | ({"images": processor.image_processor.to_json_string()} if with_images else {})


class Written(Protocol):
    """Rows that the base wrote, and what they depend on beside its weights."""

    @property
    def used(self) -> list[Prompt]:
        """The rows; all processes must ask."""

    def identity(self) -> str:
        """Digest of what decides them."""


@dataclass
class ImportanceRunner:
    """Asks prompts of a model, on every process.

    Args:
        precision: that the model computes in.
        pl_module: the model and its processor.
        layers: run-time name -> matrix.
        probe: settings.
        rows: asked instead of prompts, where the settings say so.

    Attributes:
        seconds: by phase, `prompts` and `probes`; empty as long as nothing was measured.
    """

    precision: Precision
    pl_module: TunedModule
    layers: dict[str, nn.Linear]
    probe: Probe
    rows: Written
    seconds: dict[str, float] = field(default_factory=dict)

    def cache_key(self) -> dict[str, Any]:
        """What the factors of a prompt depend on, on every process."""

        def compute() -> dict[str, Any]:
            key = cache_key(self.pl_module, self.probe, self.precision.name)
            return key | ({"rows": identity} if identity else {})

        identity = self.rows.identity() if self.probe.inputs == "rows" else None
        return compute() if is_sharded_model(self.pl_module.network) else collectives.from_rank_zero(compute)

    def grow(self, known: Factors, num_prompts: int, request: Request) -> Factors:
        """`known`, continued until it has `num_prompts` prompts."""
        missing = range(known.num_prompts, num_prompts)
        if not missing:
            return known
        # sums over prompts are made in one go; rows are made in chunks that hold whole groups and whole batches
        unit = math.lcm(request.prompts_per_row, self.probe.batch_size)
        size = -(-_CHUNK * collectives.world_size() // unit) * unit if request.factorised else num_prompts
        text = text_model(self.pl_module.network)
        rows = self._rows(num_prompts) if self.probe.inputs == "rows" else []
        with_pictures = self.probe.noise_images or any(row.image for row in rows)
        self._check_reached()
        model = self.pl_module.network if with_pictures else text
        bar = tqdm(total=len(missing), desc="Importance pass", unit="prompt", disable=collectives.rank() > 0)
        with bar, probing_mode(model), torch.enable_grad(), self.precision.context():
            prompts = rows[missing.start :] or self._prompts(model, missing)
            start = time.monotonic()
            for chunk in aligned(missing, size):
                measured = measure(
                    model,
                    self.layers,
                    [prompts[index - missing.start] for index in chunk],
                    self.probe,
                    request.statistics,
                    chunk.start,
                    bar.update,
                    partial(text_inputs, text),
                )
                known = known.followed_by(measured.grouped(request.prompts_per_row))
            bar.update(len(missing) - bar.n)  # other processes did the rest
            self.seconds["probes"] = self.seconds.get("probes", 0.0) + time.monotonic() - start
        return known

    def _check_reached(self) -> None:
        """Refuse matrices that text alone does not pass through."""
        unseen = [name for name in self.layers if QFORMER in name.split(".")]
        of = "of the Q-Former" if unseen else "of layers that read the picture"
        if not unseen and (numbers := picture_layers(self.pl_module.network)):
            places = places_of(self.pl_module.network, self.layers)
            unseen = [name for name, (number, _) in places.items() if number in numbers]
        if unseen and not self.probe.noise_images:
            raise DowserError(
                f"got {len(unseen)} matrices {of} among the targets, first {unseen[0]}, and prompts without pictures, "
                "expected one in every prompt: they run on pictures alone. Set --dowser.probe.noise_images true, or "
                "leave them out of model.targets"
            )

    def _rows(self, number: int) -> list[Prompt]:
        """So many of what the base wrote."""
        start = time.monotonic()
        rows = self.rows.used
        self.seconds["prompts"] = self.seconds.get("prompts", 0.0) + time.monotonic() - start
        if len(rows) < number:
            raise DowserError(
                f"got probe.inputs rows and {number} of them to ask, expected no more than the {len(rows)} that the "
                "base wrote. Raise --dowser.rows.per_source, or lower --dowser.probe.num_prompts (auto: max_prompts)"
            )
        return rows[:number]

    def _prompts(self, model: Any, indices: range) -> list[Prompt]:
        """The same on every process: in half precision another batch would write another text."""
        start = time.monotonic()
        processor, probe = self.pl_module.processor, self.probe

        def images(batch: range) -> list[dict[str, Tensor]]:
            return noise_images(processor, probe, batch)

        with_images = images if probe.noise_images else None
        inputs, ending = partial(text_inputs, text_model(self.pl_module.network)), self.pl_module.ending()
        prompts = write_prompts(model, tokenizer_of(processor), probe, indices, with_images, inputs, ending)
        self.seconds["prompts"] = self.seconds.get("prompts", 0.0) + time.monotonic() - start
        return prompts


@dataclass(frozen=True)
class Importance:
    """What the importance pass gave: factors, and how sure they are.

    Attributes:
        factors: of every tuned matrix.
        agreement: of two halves of the prompts; None where there is nothing to split.
        seconds: by phase, `prompts` and `probes`; empty when all came from the cache.
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
        runner: asks prompts of the model.
        method: what it needs is measured.
        agree: agreement of two halves of the given factors.
    """

    runner: ImportanceRunner
    method: Method
    agree: Callable[[Factors], Agreement | None]

    def run(self, cache_dir: Path | None, factors_file: Path | None) -> Importance:
        """Factors from the cache as far as it holds them, else measured, and then cached.

        Args:
            cache_dir: the folder of the cache; None = none.
            factors_file: read exactly this file instead, measure nothing.

        Raises:
            DowserError: if a file is damaged or belongs to something else.
        """
        number = self.runner.probe.num_prompts
        needed = self._request(self.method.needs, self.method.prompts_per_row)
        if number == "auto" and not needed.factorised:
            raise DowserError(
                "num_prompts auto compares two halves of the prompts, which this method and estimator do not keep "
                "apart; set --dowser.probe.num_prompts to a number"
            )
        if factors_file is not None:
            cache = self._cache(factors_file.parent)
            factors = self._enough(collectives.from_rank_zero(lambda: cache.load(factors_file, needed)), factors_file)
            return Importance(factors, self._halves_agree(factors), {}, factors_file)
        if cache_dir is None:
            factors, _, agreement = self._converge(Factors({}, 0, needed.prompts_per_row), needed)
            return Importance(factors, agreement, self.runner.seconds, None)
        return self._cached(self._cache(cache_dir), needed)

    def _cached(self, cache: Cache, needed: Request) -> Importance:
        """What the cache holds is used; what is measured goes on from there and is written."""
        found = collectives.from_rank_zero(lambda: cache.find(needed))
        request, stored = needed, found
        if found is None or not self._suffices(found[1]):
            written = self._request(FACTORS, 1) if needed.factorised and self._keep_all() else needed
            more = found if written == needed else collectives.from_rank_zero(lambda: cache.find(written))
            if more is not None or found is None:
                request, stored = written, more
        if stored is None:
            for line in collectives.from_rank_zero(cache.near_misses):
                rank_zero_info(f"Not this importance, though of the same weights: {line}")
        path, whole = stored if stored is not None else (None, Factors({}, 0, request.prompts_per_row))
        known = whole.num_prompts
        factors, whole, agreement = self._converge(whole, request)
        if path is None or whole.num_prompts > known:
            notes = {"agreement": agreement.as_dict() if agreement else None, "method": self.method.settings()}
            path = collectives.from_rank_zero(lambda: cache.save(whole, request, notes))
            seconds = ", ".join(f"{phase} {duration:.1f} s" for phase, duration in self.runner.seconds.items())
            rank_zero_info(f"Importance written to {path} ({seconds})")
        else:
            rank_zero_info(f"Importance of this model is known: {path}")
        return Importance(factors.grouped(self.method.prompts_per_row), agreement, self.runner.seconds, path)

    def _request(self, statistics: Iterable[str], prompts_per_row: int) -> Request:
        request = Request(frozenset(statistics), prompts_per_row)
        number = self.runner.probe.num_prompts
        return request if request.factorised or number == "auto" else replace(request, num_prompts=number)

    def _suffices(self, stored: Factors) -> bool:
        """Whether a fixed number of prompts, but for an incomplete last group, or the most that `auto` asks."""
        return stored.num_prompts >= self.runner.probe.most_prompts

    def _cache(self, folder: Path) -> Cache:
        return Cache(folder, self.runner.cache_key(), list(self.runner.layers))

    def _keep_all(self) -> bool:
        if self.runner.probe.keep != "auto":
            return self.runner.probe.keep == "all"
        widths = sum(layer.in_features + 2 * layer.out_features for layer in self.runner.layers.values())
        return 4 * widths * self.runner.probe.most_prompts <= _SMALL

    def _enough(self, factors: Factors, path: Path) -> Factors:
        wanted = self.runner.probe.num_prompts
        enough = factors if wanted == "auto" else factors.first(wanted)
        if wanted not in ("auto", enough.num_prompts):
            raise DowserError(
                f"{path} holds {factors.num_prompts} prompts in rows of {factors.prompts_per_row}, expected {wanted}; "
                f"set --dowser.probe.num_prompts {factors.num_prompts}, or probe again"
            )
        return enough

    def _converge(self, whole: Factors, request: Request) -> tuple[Factors, Factors, Agreement | None]:
        """The factors asked for, all there are, and the agreement of the former's halves."""
        if self.runner.probe.num_prompts != "auto":
            factors, whole = self._first(whole, self.runner.probe.num_prompts, request)
            return factors, whole, self._halves_agree(factors)
        rows, most = self.method.prompts_per_row, self.runner.probe.max_prompts
        number = min(max(2, -(-_FIRST_TRY // rows)) * rows, most)
        while True:
            factors, whole = self._first(whole, number, request)
            agreement = self._halves_agree(factors)
            if agreement is None:
                raise DowserError(
                    f"num_prompts auto compares two halves of the prompts: got max_prompts {most} and groups of "
                    f"{rows}, expected at least {2 * rows} prompts; raise dowser.probe.max_prompts"
                )
            if agreement.overlap >= self.runner.probe.target_overlap:
                return factors, whole, agreement
            if number >= most:
                rank_zero_warn(
                    f"the masks of two halves of {number} prompts overlap by {agreement.overlap:.3f}, below "
                    f"dowser.probe.target_overlap {self.runner.probe.target_overlap}; raise dowser.probe.max_prompts"
                )
                return factors, whole, agreement
            number = min(2 * number, most)

    def _first(self, whole: Factors, num_prompts: int, request: Request) -> tuple[Factors, Factors]:
        """The first `num_prompts` prompts, measured as far as `whole` lacks them, and the longer of the two."""
        factors = self.runner.grow(whole.first(num_prompts), num_prompts, request)
        return factors, factors if factors.num_prompts >= whole.num_prompts else whole

    def _halves_agree(self, factors: Factors) -> Agreement | None:
        agreement = self.agree(factors.grouped(self.method.prompts_per_row))
        if agreement is not None:
            rank_zero_info(f"{factors.num_prompts} prompts: {agreement} between their halves")
        return agreement
