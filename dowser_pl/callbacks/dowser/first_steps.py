"""Whether the learning rate moves what is trained at all: measured once, after the first steps at the full rate."""

import math

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from dowser_pl.masking import Protection, check_reached
from dowser_pl.methods import Method

__all__ = ["FirstSteps"]

_STEPS = 10  # at the full rate, before anything is said
_MOST = 65536  # entries of each matrix that are looked at
_SHARE = 0.5  # of entries that stay what they were, above which it is said


class FirstSteps:
    """Looks on as training begins.

    Args:
        trainer: how many steps there will be, and how many were taken.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._total = trainer.estimated_stepping_batches
        self._taken, self._left, self._highest = trainer.global_step, _STEPS, 0.0
        self._reached = False  # by a gradient

    def look(self, optimizer: Optimizer, entries: Protection, method: Method) -> None:
        """A step was taken, and is written into the matrices.

        Args:
            optimizer: that took it.
            entries: what is trained.
            method: that chose them.

        Raises:
            DowserError: if no gradient has reached what is trained.
        """
        rate: float = optimizer.param_groups[0]["lr"]
        if not (self._reached or entries.is_sharded):  # of shards a process may hold nothing that has one
            held = {id(each) for group in optimizer.param_groups for each in group["params"]}
            trained = [each for each in entries.parameters() if id(each) in held]
            check_reached(trained)
            self._reached = bool(trained)
        self._taken += 1
        if self._left == 0:
            return
        if rate > self._highest:  # it is still warming up
            self._highest = rate
            return
        self._left -= 1
        if self._left == 0 and math.isfinite(self._total):
            _warn(_stuck(entries, self._total / self._taken), self._taken, rate, entries, method)


@torch.no_grad()
def _stuck(entries: Protection, stretch: float) -> float:
    """Share of the moving entries that would still hold the bits of their base, had they moved `stretch` times as far.

    What is trained in half precision counts as a whole: moves that are too short for it are lost. Of what is trained
    more precisely only that counts which moved, as methods hold others back; if nothing did, it is all of it.
    """
    asked = still = number = 0
    for name, weight in entries.weights.items():
        trained = entries.values(name).detach()[:_MOST]
        base = entries.base_values(name)[:_MOST].to(trained.device)
        moved = trained.float() - base.float()
        loses = trained.dtype == weight.dtype != torch.float32
        counts = torch.ones_like(moved, dtype=torch.bool) if loses else moved != 0
        there = (base.float() + stretch * moved).to(weight.dtype)
        number += len(counts)
        asked += int(counts.sum())
        still += int((counts & (there == base)).sum())
    return still / asked if asked else float(number > 0)


def _warn(share: float, steps: int, rate: float, entries: Protection, method: Method) -> None:
    if share > _SHARE:
        dtype = str(next(iter(entries.weights.values())).dtype).removeprefix("torch.")
        hint = f" ({method.rate_hint})" if method.rate_hint else ""
        rank_zero_warn(
            f"after {steps} steps {share:.0%} of the trained entries move so little that, going on like this, they "
            f"would be what they were in {dtype} when training ends: the learning rate of {rate:g} cannot move them. "
            f"Fix: raise --model.optimizer.lr, ten times for a start{hint}, or train more steps"
        )
