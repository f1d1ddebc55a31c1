"""Which directions inputs have on rows that the base writes itself, inside a Trainer; and how checkpoints hold them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from dowser_pl.callbacks.dowser.replay import write_rows
from dowser_pl.errors import DowserError
from dowser_pl.functional.null_space import Directions
from dowser_pl.importance import Probe, probing_mode
from dowser_pl.importance.input_directions import first_tokens, input_directions
from dowser_pl.masking import TunedModule
from dowser_pl.methods import NullSpaceSettings
from dowser_pl.models.layers import find_blocks, text_inputs, text_model

__all__ = ["directions_of_rows", "load_directions", "save_directions"]


def directions_of_rows(
    trainer: Trainer,
    module: TunedModule,
    layers: Mapping[str, nn.Linear],
    settings: NullSpaceSettings,
    probe: Probe,
    dtype: torch.dtype | None = None,
) -> dict[str, Directions]:
    """Have the base write rows, and measure what matrices take in on them; the same on every process.

    Says so where the rows have fewer tokens than are asked for.

    Args:
        trainer: its precision.
        module: the model, its weights being the base; adapters must do nothing yet.
        layers: run-time name of a matrix, or of what takes in the same -> the linear module.
        settings: which directions, on how much.
        probe: how rows are written.
        dtype: of the vectors; None = that of each matrix.

    Raises:
        DowserError: if the base wrote no rows, or a matrix takes nothing in on them.
    """
    network, text = module.network, text_model(module.network)
    with probing_mode(network), trainer.precision_plugin.forward_context():
        rows = first_tokens(write_rows(module, probe), settings.tokens)
        got = sum(len(row.tokens) for row in rows)
        if got < settings.tokens:
            rank_zero_warn(
                f"got {got:,} self-written tokens to measure inputs on, asked for {settings.tokens:,}: directions are "
                "those of all there are. Raise --dowser.probe.num_prompts, or ask for fewer tokens"
            )
        return input_directions(
            network if any(row.image for row in rows) else text,
            layers,
            find_blocks(network, layers),
            rows,
            settings.eps,
            settings.rank,
            probe.batch_size,
            partial(text_inputs, text),
            dtype=dtype,
        )


def save_directions(found: Mapping[str, Directions]) -> dict[str, Any]:
    """For a checkpoint: those that matrices share once."""
    numbers: dict[int, int] = {}
    of = {name: numbers.setdefault(id(each), len(numbers)) for name, each in found.items()}
    distinct = {id(each): each for each in found.values()}
    return {
        "of": of,
        "vectors": [distinct[key].vectors.cpu() for key in numbers],
        "shares": [distinct[key].shares.cpu() for key in numbers],
    }


def load_directions(saved: Mapping[str, Any] | None, weights: Mapping[str, nn.Parameter]) -> dict[str, Directions]:
    """What `save_directions` made, on the devices of the weights. They are never measured again: weights are tuned now.

    Args:
        saved: of the checkpoint; None = it has none.
        weights: name -> parameter.

    Raises:
        DowserError: if there are none, or they are of a matrix that is not here.
    """
    if saved is None or not set(saved["of"]) <= set(weights):
        raise DowserError(
            f"the checkpoint has directions of {sorted((saved or {'of': ()})['of'])[:1] or 'nothing'}, expected those "
            "of this run's adapters: resume with the model.targets and the --dowser.method it was made with"
        )
    known: dict[int, Directions] = {}
    for name, number in saved["of"].items():
        device = weights[name].device
        if number not in known:
            known[number] = Directions(saved["vectors"][number].to(device), saved["shares"][number].to(device))
    return {name: known[number] for name, number in saved["of"].items()}
