"""From a base model to masks, or to what a method keeps of it: measure, then decide, the same on every process."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from dowser_pl.callbacks.dowser.importance import Importance, ImportancePass, ImportanceRunner, Precision
from dowser_pl.callbacks.dowser.rows import RowBank
from dowser_pl.callbacks.dowser.starts import adapter_starts
from dowser_pl.distributed import collectives
from dowser_pl.distributed.collectives import DistributedReducer
from dowser_pl.distributed.tensors import covering, full_tensor, is_sharded, shape_of, shard_like, to_local
from dowser_pl.errors import DowserError
from dowser_pl.functional.masks import PackedMasks, pack, unpack
from dowser_pl.functional.null_space import Directions
from dowser_pl.functional.selection import LOCAL
from dowser_pl.functional.singular import singular_directions
from dowser_pl.importance import Factors, Probe, probing_mode
from dowser_pl.importance.input_directions import first_tokens, input_directions, input_moments, num_words
from dowser_pl.masking import TunedModule
from dowser_pl.methods import (
    OSF,
    AfterFit,
    Agreement,
    BeforeFit,
    EachStep,
    Layer,
    Lora,
    Method,
    NullSpace,
    NullSpaceSettings,
    Scored,
    build_masks,
    magnitude_overlap,
    split_half,
)
from dowser_pl.models.layers import find_blocks, text_inputs, text_model
from dowser_pl.models.lora import adapters_of
from dowser_pl.models.quantized import base_weight

__all__ = ["MaskBuilder"]

T = TypeVar("T")


@dataclass
class MaskBuilder:
    """Builds the masks of one model from what is measured of it.

    Args:
        precision: that the model computes in.
        pl_module: the model, whose weights are the base.
        layers: run-time name -> matrix.
        method: decides.
        probe: settings of the importance pass.
        cache_dir: where importance factors are kept; None = always probe.
        factors_file: read them from exactly this file.
        bank: of rows that the base writes.

    Attributes:
        seconds: that deciding took.
        diagnostics: numbers worth reporting.
    """

    precision: Precision
    pl_module: TunedModule
    layers: dict[str, nn.Linear]
    method: Method
    probe: Probe
    cache_dir: Path | None
    factors_file: Path | None
    bank: RowBank
    seconds: float = 0.0
    diagnostics: dict[str, float] = field(default_factory=dict)
    _factors: Factors = field(default_factory=lambda: Factors({}, 0))

    def refuse_tuned(self, checkpoint: str | Path | None) -> None:
        """Masks are never computed on weights that were already tuned.

        Args:
            checkpoint: that the weights were loaded from.

        Raises:
            DowserError: if these were.
        """
        if checkpoint is not None:
            raise DowserError(
                f"{checkpoint} holds no masks: it was not written by a run with this callback. Masks are "
                "never computed on weights that were already tuned; start a fresh run from the base model instead"
            )
        protected = self.pl_module.protected
        tuned = "was tuned by an earlier fit" if protected is not None and protected.verify()[1].changed else None
        if tuned or self.pl_module.holds_checkpoint:
            raise DowserError(
                f"this model {tuned or 'holds the weights of a checkpoint'}, and masks are never computed on tuned "
                "weights; go on from its checkpoint with ckpt_path, or start from a newly loaded model"
            )

    def masks(self) -> PackedMasks:
        """Name -> (O, I) bool, True = trainable: all of it, where the method decides later than now.

        Packed as they are decided, so that no two are held.
        """
        if not isinstance(self.method, BeforeFit):
            here = ((name, to_local(layer.weight)) for name, layer in self.layers.items())
            return PackedMasks.of((name, torch.ones_like(weight, dtype=torch.bool)) for name, weight in here)
        start = time.monotonic()
        factors = self._factors = self.measure().factors
        masks = PackedMasks.of(self.masks_of(self.method))
        self.seconds = time.monotonic() - start
        self.diagnostics |= magnitude_overlap(self.method, (self._layer(factors, name) for name in self.layers))
        return masks

    def masks_of(self, method: BeforeFit) -> Iterator[tuple[str, Tensor]]:
        """Name and (O, I) bool mask of every matrix, by what was measured for `masks`.

        Args:
            method: that one, or it with other hyper-parameters.
        """
        sharded = self._is_sharded()
        pieces = DistributedReducer() if sharded else LOCAL
        blocks = find_blocks(self.pl_module.network, self.layers)
        for name, mask in build_masks(method, blocks, lambda name: self._here(self._factors, name), pieces):
            if collectives.world_size() > 1 and not sharded:  # kernels may round differently: all take the first's mask
                yield name, unpack(collectives.of_first(pack(mask)).to(mask.device), mask.shape)
            else:
                yield name, mask

    def priors(self, method: EachStep) -> dict[str, Tensor]:
        """Name -> float32 of what is here that the method makes of the base and keeps, where it makes something."""
        if type(method).prior is EachStep.prior:  # nothing; whole matrices would be put together for it
            return {}
        start = time.monotonic()
        factors = self.measure().factors
        priors = {}
        for name in self.layers:
            prior = method.prior(self._layer(factors, name))
            if prior is not None:
                priors[name] = shard_like(collectives.of_first(prior), self.layers[name].weight).clone()
        self.seconds = time.monotonic() - start
        return priors

    def directions(self) -> dict[str, Directions]:
        """Name -> directions that the method keeps off: of inputs on rows which the base wrote, or of matrices.

        With adapters, which do nothing yet, these are the names of every A, and what runs is the base; of matrices also
        those of every B.
        """
        if isinstance(self.method, Lora) and self.method.preserve is not None:
            return self._singular(self.method.preserve)
        if isinstance(self.method, Lora) and self.method.null_space is not None:
            adapters = adapters_of(self.pl_module.network)
            assert adapters is not None  # by `check_adapters`
            return self._directions(adapters.sources, self.method.null_space, self.pl_module.network.dtype)
        if isinstance(self.method, NullSpace):
            return self._directions(self.layers, self.method, None)
        if isinstance(self.method, OSF):
            return self._preserved(self.method)
        return {}

    def _singular(self, rank: int) -> dict[str, Directions]:
        start, adapters = time.monotonic(), adapters_of(self.pl_module.network)
        assert adapters is not None  # by `check_adapters`
        found: dict[str, Directions] = {}
        for (first, layer), second in zip(adapters.sources.items(), adapters.sinks, strict=True):
            outputs, inputs = singular_directions(base_weight(layer), rank)
            found |= {first: _of_first(inputs), second: _of_first(outputs)}
        self.seconds += time.monotonic() - start
        return found

    def _preserved(self, method: OSF) -> dict[str, Directions]:
        start, found = time.monotonic(), dict[str, Directions]()
        for name, layer in self.layers.items():
            rank = method.rank_of(*layer.weight.shape)
            outputs, inputs = map(_of_first, singular_directions(layer.weight, rank))
            found[name] = replace(inputs, outputs=outputs.vectors)
        self.seconds += time.monotonic() - start
        return found

    def starts(self) -> dict[str, Tensor]:
        """Name of every A and B -> float32 that it begins with, where the method says; what runs is the base."""
        adapters = adapters_of(self.pl_module.network)
        assert adapters is not None and isinstance(self.method, Lora) and self.method.start is not None
        settings = self.method.start

        def measure(**given: Any) -> dict[str, Tensor]:
            return adapter_starts(adapters, settings, input_moments(**given))

        return self._measured(adapters.sources, settings.tokens, measure)

    def _directions(
        self, layers: dict[str, nn.Linear], settings: NullSpace | NullSpaceSettings, dtype: torch.dtype | None
    ) -> dict[str, Directions]:
        measure = partial(input_directions, eps=settings.eps, rank=settings.rank, dtype=dtype)
        return self._measured(layers, settings.tokens, measure)

    def _measured(
        self, layers: dict[str, nn.Linear], tokens: int, measure: Callable[..., dict[str, T]]
    ) -> dict[str, T]:
        """Have the base read so many tokens that it wrote; `measure` gets what `input_moments` takes."""
        start, network = time.monotonic(), self.pl_module.network
        rows = first_tokens(self.bank.used, tokens)
        written = num_words(rows)
        if written < tokens:
            rank_zero_warn(
                f"the base wrote {written:,} tokens, fewer than the {tokens:,} that inputs are to be measured "
                "on, so they are measured on these. Raise --dowser.rows.per_source, or ask for fewer tokens"
            )
        text = text_model(network)
        model = network if any(row.image for row in rows) else text
        with probing_mode(network), self.precision.context():
            found = measure(
                model=model,
                layers=layers,
                blocks=find_blocks(network, layers),
                prompts=rows,
                batch_size=self.probe.batch_size,
                text_inputs=partial(text_inputs, text),
            )
        self.seconds += time.monotonic() - start
        return found

    def measure(self) -> Importance:
        """What the method needs to know of the base model; nothing, for some."""
        if not self.method.needs or isinstance(self.method, AfterFit):
            return Importance(Factors({}, 0), None, {}, None)
        if self.probe.num_prompts == "auto" and not isinstance(self.method, Scored):
            raise DowserError(
                f"num_prompts auto compares the masks of two halves of the prompts, and {type(self.method).__name__} "
                "has no mask; set --dowser.probe.num_prompts to a number"
            )
        runner = ImportanceRunner(self.precision, self.pl_module, self.layers, self.probe, self.bank)
        importance = ImportancePass(runner, self.method, self._agreement).run(self.cache_dir, self.factors_file)
        self.diagnostics = {"prompts": importance.factors.num_prompts}
        if importance.agreement is not None:
            self.diagnostics |= importance.agreement.as_dict()
        return importance

    def _agreement(self, factors: Factors) -> Agreement | None:
        if not isinstance(self.method, Scored):
            return None
        return split_half(self.method, (self._layer(factors, name) for name in self.layers))

    def _layer(self, factors: Factors, name: str) -> Layer:
        """The whole matrix; where it is sharded over processes, all must call it."""
        measured: dict[str, Any] = factors.layers.get(name, {})
        return Layer(name, full_tensor(self._weight(name)), **measured)

    def _here(self, factors: Factors, name: str) -> Layer:
        """Of the matrix what this process holds."""
        weight = self._weight(name)
        if not is_sharded(weight):
            return self._layer(factors, name)
        measured: dict[str, Any] = factors.layers.get(name, {})
        return rows_of(Layer(name, weight, **measured))

    def _weight(self, name: str) -> Tensor:
        layer = self.layers[name]
        return layer.weight if is_sharded(layer.weight) else base_weight(layer)

    def _is_sharded(self) -> bool:
        return any(is_sharded(layer.weight) for layer in self.layers.values())


def _of_first(found: Directions) -> Directions:
    """Those of the first process, since kernels may round differently, and vectors have either sign."""
    return replace(found, vectors=collectives.of_first(found.vectors))


def rows_of(layer: Layer) -> Layer:
    """The rows of a sharded matrix that cover what is here, with what was measured of the matrix.

    Where a process holds a range of flat positions, its first and last row may be here in part: zeros stand for the
    rest, and `part` says so.
    """
    rows, part = covering(layer.weight)
    total, columns = shape_of(layer.weight)
    weight = to_local(layer.weight)
    if part is not None:
        held, weight = weight, weight.new_zeros(rows.stop - rows.start, columns)
        weight.view(-1)[part] = held
    outputs = {
        name: value[:, rows]
        for name in ("abs_gradient", "square_gradient")
        if (value := getattr(layer, name)) is not None
    }
    return replace(layer, weight=weight, rows=(rows, total), part=part, **outputs)
