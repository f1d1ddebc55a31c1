"""A base as others are compared with it: what it said on rows that it wrote, and what its matrices and layers were."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from dowser_pl.errors import DowserError
from dowser_pl.importance.base_outputs import BaseOutputs, current_logits, record_base
from dowser_pl.importance.drift import measure_drift
from dowser_pl.importance.layer_drift import layer_drift, layer_outputs
from dowser_pl.importance.probe import probing_mode
from dowser_pl.importance.prompts import Prompt
from dowser_pl.importance.rows import Writers
from dowser_pl.importance.settings import Rows
from dowser_pl.models.experts import has_experts
from dowser_pl.models.generation import Ending
from dowser_pl.models.layers import TARGETS, check_kind, decoder_layers, find_layers, kind_of, places_of, text_model
from dowser_pl.models.lora import weight_beside
from dowser_pl.models.quantized import is_quantized
from dowser_pl.reporting.drift import DriftScore, ReportedDrift
from dowser_pl.reporting.moved import MatrixMove, Moved

__all__ = ["Origin", "OwnRows", "Writes"]

_APART = 10**6  # from the rows that runs of small seeds train with
_LOOKED_INTO = 8  # rows of each source whose outputs are kept for every layer


class Writes(Protocol):
    """A model with all that it takes to have it write."""

    @property
    def network(self) -> Any:
        """The Hugging Face model."""

    @property
    def processor(self) -> Any:
        """The Hugging Face processor of the model, or its tokenizer."""

    def ending(self) -> Ending:
        """What ends a text."""

    def openers(self) -> tuple[str, str, str | None] | None:
        """What the chat template writes around a user's words; None without one."""


@dataclass(frozen=True)
class OwnRows:
    """Which rows a base writes to be compared on.

    Attributes:
        per_source: how many of each source.
        seed: of the rows.
        batch_size: rows a forward pass.
        pictures: such as those of the task; the base writes rows after them too.
    """

    per_source: int = 32
    seed: int = 0
    batch_size: int = 16
    pictures: Sequence[Image.Image] = ()

    def __post_init__(self) -> None:
        for name in ("per_source", "batch_size"):
            if getattr(self, name) < 1:
                raise DowserError(f"got {name} {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True)
class Origin:
    """What is known of a base when it is not there any more.

    Attributes:
        said: on rows that it wrote.
        batch_size: rows a forward pass.
        kind: class of the model, and number of its tokens.
        places: its matrices, and what its layers handed on; None = not kept.
    """

    said: BaseOutputs
    batch_size: int
    kind: tuple[str, int]
    places: "_Places | None"

    @classmethod
    def of(cls, base: Writes, settings: OwnRows, places: bool) -> "Origin":
        """Have the base write rows and read them.

        Args:
            base: in any mode, in which it is afterwards.
            settings: of the rows.
            places: whether matrices and outputs of layers are kept, in host memory.

        Raises:
            DowserError: for an encoder-decoder, or where matrices are to be kept that are quantized or experts.
        """
        network, size = base.network, settings.batch_size
        if text_model(network).config.is_encoder_decoder:
            raise DowserError(
                f"got {type(network).__name__}, an encoder-decoder, expected a model that continues its own text: it "
                "writes no rows to compare models on"
            )
        if places and any(has_experts(layer) for layer in decoder_layers(network)):
            raise DowserError(
                f"got {type(network).__name__}, a mixture of experts, expected a model whose layers are dense: experts "
                "are not compared matrix by matrix. Fix: do not ask where its matrices moved"
            )
        layers = find_layers(network, None, TARGETS) if places else {}
        if any(is_quantized(layer) for layer in layers.values()):
            raise DowserError(
                "got a base in 4 or 8 bits, whose matrices cannot be compared entry by entry. Fix: give the base as it "
                "was before, or do not ask where its matrices moved"
            )
        with probing_mode(network):
            rows = _written(base, settings)
            said = record_base(network, rows, size)
        head = copy.deepcopy(text_model(network).get_output_embeddings())  # of a tuned model it may be another
        kept = _Places.of(network, layers, rows, size) if places else None
        return cls(replace(said, head=head), size, kind_of(network), kept)

    def drift(self, network: PreTrainedModel) -> ReportedDrift:
        """How far a model is from the base on these rows.

        Raises:
            DowserError: if it is of another kind.
        """
        check_kind(network, self.kind, str(network.name_or_path) or "the model")
        found = measure_drift(network, self.said, self.batch_size)
        return ReportedDrift({kind: DriftScore(**vars(each)) for kind, each in found.items()})

    def moved(self, network: PreTrainedModel) -> Moved:
        """Where a model differs from the base, whose places were kept."""
        assert self.places is not None
        return self.places.compare(network, self.batch_size)


def _written(base: Writes, settings: OwnRows) -> list[Prompt]:
    seed, number = settings.seed + _APART, settings.per_source
    rows = Rows(per_source=max(number, 2), seed=seed, held_out=0.5, batch_size=settings.batch_size)
    network = base.network
    writers = Writers.of(network, base.processor, base.ending(), rows, base.openers(), settings.pictures)
    read = torch.no_grad()(partial(current_logits, network))
    return writers.in_turns(writers.sources(), range(number), read)


@dataclass(frozen=True)
class _Places:
    """Of the base: its matrices in host memory, and what each layer hands on for some of the rows."""

    weights: dict[str, Tensor]
    places: dict[str, tuple[int, str]]
    rows: list[Prompt]
    outputs: list[list[Tensor]]

    @classmethod
    def of(cls, network: Any, layers: dict[str, Any], rows: list[Prompt], batch_size: int) -> "_Places":
        kinds = list(dict.fromkeys(row.kind for row in rows))
        few = [row for kind in kinds for row in [each for each in rows if each.kind == kind][:_LOOKED_INTO]]
        weights = {name: layer.weight.detach().to("cpu", copy=True) for name, layer in layers.items()}
        return cls(weights, places_of(network, layers), few, layer_outputs(network, few, batch_size))

    def compare(self, network: Any, batch_size: int) -> Moved:
        moves = []
        for name, before in self.weights.items():
            now = weight_beside(network.get_submodule(name)).detach().cpu()
            moved = torch.linalg.vector_norm(now.float() - before.float()).item()
            size = moved / (torch.linalg.vector_norm(before.float()).item() or moved or 1.0)  # 1 for a base of zeros
            share = (now != before).double().mean().item()
            moves.append(MatrixMove(name, *self.places[name], size, share))
        return Moved(moves, layer_drift(network, self.rows, self.outputs, batch_size))
