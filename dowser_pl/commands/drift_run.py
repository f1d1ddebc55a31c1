"""What `drift` does; loads torch, so `--help` does without this file."""

import copy
import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dowser_pl.commands.tuned import loaded, tuned_path
from dowser_pl.commands.tuned import tuned as tuned_model
from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import write_atomically
from dowser_pl.importance import Prompt, Rows, Writers, probing_mode
from dowser_pl.importance.base_outputs import BaseOutputs, current_logits, record_base
from dowser_pl.importance.drift import measure_drift
from dowser_pl.importance.layer_drift import layer_drift, layer_outputs
from dowser_pl.importance.pictures import NUM_PICTURES, shrunken
from dowser_pl.models.layers import TARGETS, find_blocks, find_layers, text_model
from dowser_pl.models.lora import weight_beside
from dowser_pl.models.quantized import is_quantized
from dowser_pl.module import MultimodalModule
from dowser_pl.reporting import DriftScore, ReportedDrift
from dowser_pl.reporting.drift import DRIFT_ALIGNS, DRIFT_HEADER, drift_rows, drift_text
from dowser_pl.reporting.moved import MatrixMove, Moved, moved_text
from dowser_pl.reporting.plots.moved import plot_moved
from dowser_pl.reporting.plots.style import check_format
from dowser_pl.reporting.provenance import provenance
from dowser_pl.reporting.table import text_grid

__all__ = ["run"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_APART = 10**6  # from the rows that runs of small seeds train with
_LOOKED_INTO = 8  # rows of each source whose outputs are kept for every layer


def run(options: Namespace, argv: Sequence[str]) -> str:
    """Measure and write; returns what to print."""
    for name, least in (("per_source", options.per_source), ("batch_size", options.batch_size)):
        if least < 1:
            raise DowserError(f"got --{name.replace('_', '-')} {least}, expected at least 1")
    if options.moved:
        check_format(options.moved)
    tuned = [tuned_path(name) for name in options.tuned]  # before anything is loaded
    pictures = [] if options.pictures is None else _pictures(Path(options.pictures))
    base = loaded(options.base, options.dtype)
    if text_model(base.network).config.is_encoder_decoder:
        raise DowserError(
            f"got {type(base.network).__name__}, an encoder-decoder, expected a model that continues its own text: it "
            "writes no rows to compare models on"
        )
    with probing_mode(base.network):
        rows = _written(base, options, pictures)
        said = record_base(base.network, rows, options.batch_size)
    head = text_model(base.network).get_output_embeddings()
    said = replace(said, head=copy.deepcopy(head))  # of a tuned model it may be another
    places = _Places.of(base, rows, options.batch_size) if options.moved else None
    found, moved = dict[str, ReportedDrift](), dict[str, Moved]()
    for name, what in zip(options.tuned, tuned, strict=True):
        with tuned_model(base, what, options.dtype) as network:
            found[name] = _measured(network, said, options)
            if places is not None:
                moved[name] = places.compare(network, options.batch_size)
    if options.json:
        content = {name: each.to_dict() for name, each in found.items()}
        written = provenance("drift", argv) | {"base": options.base, "drift": content}
        written |= {"moved": {name: each.to_dict() for name, each in moved.items()}} if moved else {}
        write_atomically(options.json, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    parts = [f"{name}: {drift_text(each)}\n\n{_table(each)}" for name, each in found.items()]
    if moved:
        short = [Path(name).name for name in moved]
        labels = short if len(set(short)) == len(short) else list(moved)
        plot_moved(dict(zip(labels, moved.values(), strict=True)), options.moved)
        lines = "\n".join(f"{name}: {moved_text(each)}" for name, each in moved.items())
        parts.append(f"{lines}\nPicture: {options.moved}")
    return "\n\n".join(parts)


@dataclass(frozen=True)
class _Places:
    """Of the base: its matrices in host memory, and what each layer hands on for some of the rows."""

    weights: dict[str, torch.Tensor]
    blocks: dict[str, str]
    rows: list[Prompt]
    outputs: list[list[torch.Tensor]]

    @classmethod
    def of(cls, base: MultimodalModule, rows: list[Prompt], batch_size: int) -> "_Places":
        kinds = list(dict.fromkeys(row.kind for row in rows))
        few = [row for kind in kinds for row in [each for each in rows if each.kind == kind][:_LOOKED_INTO]]
        network = base.network
        layers = find_layers(network, None, TARGETS)
        if any(is_quantized(layer) for layer in layers.values()):
            raise DowserError(
                "got --moved and a base in 4 or 8 bits, whose matrices cannot be compared entry by entry. Fix: give "
                "the base as it was before, or leave --moved out"
            )
        weights = {name: layer.weight.detach().to("cpu", copy=True) for name, layer in layers.items()}
        return cls(weights, find_blocks(network, layers), few, layer_outputs(network, few, batch_size))

    def compare(self, network: Any, batch_size: int) -> Moved:
        order = list(dict.fromkeys(self.blocks.values()))
        moves = []
        for name, before in self.weights.items():
            block = self.blocks[name]
            now = weight_beside(network.get_submodule(name)).detach().cpu()
            moved = torch.linalg.vector_norm(now.float() - before.float()).item()
            size = moved / (torch.linalg.vector_norm(before.float()).item() or moved or 1.0)  # 1 for a base of zeros
            share = (now != before).double().mean().item()
            moves.append(MatrixMove(name, order.index(block), name.removeprefix(f"{block}."), size, share))
        return Moved(moves, layer_drift(network, self.rows, self.outputs, batch_size))


def _table(drift: ReportedDrift) -> str:
    return text_grid(DRIFT_HEADER, drift_rows(drift), DRIFT_ALIGNS)


def _measured(network: Any, said: BaseOutputs, options: Namespace) -> ReportedDrift:
    found = measure_drift(network, said, options.batch_size)
    return ReportedDrift({kind: DriftScore(**vars(each)) for kind, each in found.items()})


def _written(base: MultimodalModule, options: Namespace, pictures: list[Image.Image]) -> list[Prompt]:
    seed, size = options.seed + _APART, options.batch_size
    settings = Rows(per_source=max(options.per_source, 2), seed=seed, held_out=0.5, batch_size=size)
    writers = Writers.of(base.network, base.processor, base.ending(), settings, base.openers(), pictures)
    read = torch.no_grad()(partial(current_logits, base.network))
    return writers.in_turns(writers.sources(), range(options.per_source), read)


def _pictures(folder: Path) -> list[Image.Image]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)[:NUM_PICTURES]
    if not files:
        raise DowserError(f"there are no pictures in {folder}, expected some of {', '.join(_SUFFIXES)}")
    found = []
    for file in files:
        with Image.open(file) as picture:
            found.append(shrunken(picture))
    return found
