"""How far a model has drifted from its base, without data: on rows that the base wrote, against what it said there.

Drift is the mean over positions of KL(base || current), and the share of them at which both would say the same token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from transformers import PreTrainedModel

from dowser_pl.distributed.models import is_sharded_model
from dowser_pl.functional.divergence import agreement, kl_divergence
from dowser_pl.importance.base_outputs import BaseOutputs, current_logits
from dowser_pl.importance.batches import read_all
from dowser_pl.importance.probe import probing_mode
from dowser_pl.importance.prompts import alike, counted

__all__ = ["Drift", "measure_drift", "pooled"]


@dataclass(frozen=True)
class Drift:
    """What became of a base on some rows.

    Attributes:
        kl: mean of KL(base || current) over the positions, in nats.
        agreement: share of the positions at which the likeliest token is the base's.
        positions: how many there are.
    """

    kl: float
    agreement: float
    positions: int


def measure_drift(network: PreTrainedModel, base: BaseOutputs, batch_size: int) -> dict[str, Drift]:
    """Compare the current model with its base; nothing but forward passes, in eval mode.

    Args:
        network: the current model, whose head is that of the base where `base` keeps hidden states.
        base: what the base said on rows that are not trained on.
        batch_size: rows a forward pass.

    Returns:
        Kind of rows -> drift on these, in the order of the rows.
    """

    def read(numbers: list[int]) -> dict[int, Drift]:
        rows = [base.rows[number] for number in numbers]
        said, now = base.of(network, numbers), current_logits(network, rows)
        both = torch.stack([kl_divergence(said, now).double(), agreement(said, now).double()]).cpu()
        found, stops = dict[int, Drift](), list(accumulate(int(counted(row).sum()) for row in rows))
        for number, start, stop in zip(numbers, [0, *stops], stops, strict=False):
            kl, same = both[:, start:stop].mean(dim=1).tolist()
            found[number] = Drift(kl, same, stop - start)
        return found

    of_rows: dict[int, Drift] = {}
    with probing_mode(network), torch.no_grad():
        for part in read_all(read, alike(base.rows, batch_size), is_sharded_model(network)):
            of_rows |= part
    kinds = {row.kind: [of_rows[n] for n, each in enumerate(base.rows) if each.kind == row.kind] for row in base.rows}
    return {kind: pooled(drifts) for kind, drifts in kinds.items()}


def pooled(drifts: Sequence[Drift]) -> Drift:
    """The drift on all positions of several, each position counting the same.

    Args:
        drifts: at least one.
    """
    positions = sum(each.positions for each in drifts)
    kl = sum(each.kl * each.positions for each in drifts) / positions
    return Drift(kl, sum(each.agreement * each.positions for each in drifts) / positions, positions)
