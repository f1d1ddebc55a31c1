"""Replay: while a model learns, it is held to what its base says on rows that the base wrote itself.

Every optimizer step adds the gradient of

    weight * mean over positions of KL(base || current)

to that of the batch, on a few of the rows. It is the loss of learning without forgetting (arXiv 1606.09282) on inputs
that the model writes itself (arXiv 2403.01244), so that no data is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dowser_pl.errors import DowserError
from dowser_pl.functional.divergence import kl_divergence
from dowser_pl.functional.random_streams import stream
from dowser_pl.importance.base_outputs import BaseOutputs, current_logits
from dowser_pl.importance.prompts import Prompt, alike, counted

__all__ = ["Replay", "draw_rows", "replay_gradient"]


@dataclass(frozen=True)
class Replay:
    """How a model is held to what its base says, beside what it learns.

    Args:
        weight: of the mean KL(base || current) beside the loss of the batch; 0 = off.
        rows: rows of an optimizer step, on each process.
        every: optimizer steps from one that replays to the next; its weight is multiplied by them.
        sources: kinds of rows to draw from, such as `text` and `noise`; null = all there are.
    """

    weight: float = 1.0
    rows: int = 8
    every: int = 1
    sources: list[str] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise DowserError(
                f"got replay.weight {self.weight}, expected a finite number of at least 0. Fix: such as 1"
            )
        if self.rows < 1 or self.every < 1:
            raise DowserError(
                f"got replay.rows {self.rows} and replay.every {self.every}, expected at least 1 of both. To do "
                "without replay, set --dowser.replay null"
            )
        if self.sources is not None and not self.sources:
            raise DowserError("got no replay.sources, expected kinds of rows, such as [text, noise], or null for all")


def draw_rows(rows: list[Prompt], count: int, seed: int, step: int, rank: int) -> list[int]:
    """Numbers of the rows of one optimizer step on one process, none twice; nothing else decides them.

    All processes get equally many of those that are read together, so that they run the model equally often.

    Args:
        rows: to draw from.
        count: how many; all where there are fewer.
        seed: of the run.
        step: optimizer steps so far.
        rank: of the process.
    """
    shared = stream(seed, "replay", step)
    chosen = set(torch.randperm(len(rows), generator=shared)[:count].tolist())
    own = stream(seed, "replay", step, rank)
    drawn: list[int] = []
    for group in alike(rows, len(rows)):
        order = torch.randperm(len(group), generator=own).tolist()
        drawn += [group[place] for place in order[: len(chosen & set(group))]]
    return drawn


def replay_gradient(
    network: PreTrainedModel,
    base: BaseOutputs,
    numbers: list[int],
    factor: float,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
) -> Tensor:
    """Add the gradient of factor * mean KL(base || current) to what the weights have.

    Rows that cannot be read together have a pass of their own, and all positions count the same.

    Args:
        network: the current model, in the mode in which it trains.
        base: what the base said on the rows.
        numbers: of the rows of this step.
        factor: of the mean.
        backward: runs the backward pass of a loss.

    Returns:
        () mean KL over the positions, float32, without its graph.
    """
    drawn = [base.rows[number] for number in numbers]
    positions = sum(int(counted(row).sum()) for row in drawn)
    means = []
    for places in alike(drawn, len(drawn)):
        now = current_logits(network, [drawn[place] for place in places])
        part = kl_divergence(base.of(network, [numbers[place] for place in places]), now).sum() / positions
        means.append(part.detach())
        if part.requires_grad:  # not where only the vision part is trained and these rows have no picture
            backward(part * factor)
    return torch.stack(means).sum()
