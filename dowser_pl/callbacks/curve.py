"""The whole curve from one run: the tuned model at every smaller update ratio, and the ratio that keeps a budget.

In which order updates are to be taken back is told while masks are decided, and kept in checkpoints.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from dowser_pl.callbacks.dowser.merging import announce_merge
from dowser_pl.callbacks.order import find_callback
from dowser_pl.distributed import collectives
from dowser_pl.distributed.collectives import DistributedReducer, gather_to_rank_zero
from dowser_pl.errors import DowserError
from dowser_pl.functional.masks import left_out
from dowser_pl.masking import (
    DenseEntries,
    NestedUpdates,
    Protection,
    ReportedModule,
    TunedModule,
    reported_module,
    tuned_module,
)
from dowser_pl.methods import BeforeFit, Method, Scored
from dowser_pl.metrics import metric_label
from dowser_pl.reporting import BudgetChoice, CurvePoint, comparable

__all__ = ["Curve", "MasksOf", "UpdateOrder", "find_curve"]


MasksOf = Callable[[BeforeFit], Iterator[tuple[str, Tensor]]]
"""Name and mask of every matrix, by what was measured of the base, of a method at some update ratio."""


class UpdateOrder:
    """Groups of trainable entries, one byte each, the least important ones first.

    Attributes:
        levels: name of a matrix -> (k,) uint8, the group of each trainable entry that is here; None = not told.
        steps: all ratios at which groups end, rising, the last that of the run.
    """

    def __init__(self) -> None:
        self.levels: dict[str, Tensor] | None = None
        self.steps: list[float] = []
        self._is_sharded = False  # whether processes hold different entries

    def tell(self, method: Scored, entries: Protection, masks_of: MasksOf) -> None:
        """Put the trainable entries of a fresh run into groups, while their scores can be told."""
        self._is_sharded = entries.is_sharded
        self.levels = {name: torch.zeros(int(mask.sum()), dtype=torch.uint8) for name, mask in entries.masks.items()}
        for ratio in self.steps[:-1]:
            for name, mask in masks_of(_at(method, ratio)):
                self.levels[name] += left_out(entries.masks[name], mask)

    def cut(self, entries: Protection) -> None:
        """Keep, of the groups that a checkpoint told, those of the entries that this process holds."""
        if self.levels is None or self._is_sharded or not entries.is_sharded:
            return
        self._is_sharded = True
        for name, mask in entries.masks.items():
            count = int(mask.sum())
            first, _ = DistributedReducer().exclusive_sum(count)
            self.levels[name] = self.levels[name][first : first + count].clone()

    def state_dict(self) -> dict[str, Any]:
        """Groups of all entries, on the first process, whose state alone is saved."""
        if self.levels is None or (collectives.rank() > 0 and not self._is_sharded):
            return {}
        levels = (
            {name: gather_to_rank_zero(each) for name, each in self.levels.items()} if self._is_sharded else self.levels
        )
        return {"ratios": self.steps, "levels": levels} if collectives.rank() == 0 else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Groups of the run that is resumed: its scores cannot be told any more."""
        if state_dict:
            self.steps, self.levels = list(state_dict["ratios"]), dict(state_dict["levels"])
            self._is_sharded = False


def _at(method: Scored, ratio: float) -> Scored:
    """The method at another update ratio."""
    other = copy.copy(method)
    other.update_ratio = ratio
    return other


_SHARES = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8)  # of the update ratio, where a budget is asked for and no ratios are
_MOST_GROUPS = 255  # groups that fit into one byte per trainable entry


class Curve(Callback):
    """Takes updates back when training ends, the most important entries first, and measures what is left.

    Args:
        ratios: update ratios to measure the tuned model at, beside that of the run, on the data of the report.
        max_upstream_drop: keep the largest ratio at which the upstream mean loses at most so much, measured on
            questions to choose on (`selection_tasks` of the data), and export that model; None = do not limit it.
        max_drift: the same by the drift from the base, in nats of KL on rows that it wrote itself, which takes no data;
            None = do not limit it. Of both, the largest ratio that keeps both.
    """

    def __init__(
        self, ratios: Sequence[float] = (), max_upstream_drop: float | None = None, max_drift: float | None = None
    ) -> None:
        odd = [ratio for ratio in ratios if not 0 < ratio <= 1]
        if odd:
            raise DowserError(f"curve lists update ratios, above 0 and at most 1; got {odd[0]}")
        if max_upstream_drop is not None and not max_upstream_drop >= 0.0:
            raise DowserError(
                f"budget.max_upstream_drop is how much of the upstream mean may be lost, 0.02 for two hundredths; got "
                f"{max_upstream_drop}"
            )
        if max_drift is not None and not max_drift >= 0.0:
            raise DowserError(
                f"budget.max_drift is the KL to the base that may be reached, 0.01 for a careful one; got {max_drift}"
            )
        self.ratios = sorted(set(ratios))
        self.max_upstream_drop, self.max_drift = max_upstream_drop, max_drift
        self.points: list[CurvePoint] = []
        """Smaller ratios than that of the run, once training has ended."""
        self.choice: BudgetChoice | None = None
        self.seconds = 0.0
        """That measuring took."""
        self._order = UpdateOrder()

    @property
    def active(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.ratios) or self.chooses

    @property
    def chooses(self) -> bool:
        """Whether there is a budget."""
        return self.max_upstream_drop is not None or self.max_drift is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Where something is asked for: whether the module can be measured when training ends."""
        if self.active and stage == "fit":
            reported_module(pl_module, self)

    def check(self, trainer: Trainer, whole: Sequence[str], method: Method, resumed: bool, has_drift: bool) -> None:
        """Before anything is measured: refuse what could not be done when training ends.

        Args:
            trainer: its data.
            whole: what is trained without a mask.
            method: of the run.
            resumed: whether a checkpoint was loaded.
            has_drift: whether drift from the base is measured.

        Raises:
            DowserError: saying what to set.
        """
        self.points, self.choice, self.seconds = [], None, 0.0
        if not self.active:
            return
        if not isinstance(method, Scored):
            raise DowserError(
                "curve and budget take updates back in the order of a score that was known before training, got "
                f"dowser.method {type(method).__name__}, which has none; use one that masks by a score, such as "
                "ModelDowser, or leave them out"
            )
        steps = self._ratios_of(method)
        if resumed and (self._order.levels is None or steps != self._order.steps):
            raise DowserError(
                f"the checkpoint knows the order of updates at the ratios {self._order.steps or 'none'}, this run asks "
                f"for {steps}; resume with the curve (and budget) that its run began with, or start a new run"
            )
        self._order.steps = steps
        if self.chooses and whole:
            raise DowserError(
                f"budget takes updates back to the base, got model.also_train with {len(whole)} tensors ({whole[0]} "
                "...), which have no mask; leave one of them out"
            )
        if self.max_upstream_drop is not None and not any(task.role == "upstream" for task in _selection(trainer)):
            raise DowserError(
                "budget.max_upstream_drop chooses on upstream questions that the report does not use, and "
                f"{type(trainer.datamodule).__name__} has none (`selection_tasks`); with ConversationData list them "  # type: ignore[attr-defined]
                "under data.choose_on, or limit --budget.max_drift, which takes no data"
            )
        if self.max_drift is not None and not has_drift:
            raise DowserError(
                "budget.max_drift chooses by the drift from the base, and it is not measured here: set --dowser.drift "
                "true, with a decoder-only model, in the run that begins"
            )

    def order(self, method: Method, entries: Protection, masks_of: MasksOf) -> None:
        """Put the trainable entries into groups, while their scores can be told.

        Args:
            method: decided on the masks.
            entries: of a fresh run.
            masks_of: name and mask of every matrix, by the same measurements, of the same method at another ratio.
        """
        if not self.active:
            return
        assert isinstance(method, Scored)  # by `check`
        self._order.tell(method, entries, masks_of)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what concerns this process, where weights are sharded and a checkpoint has told of all entries."""
        if (protected := tuned_module(pl_module, self).protected) is not None:
            self._order.cut(protected)

    def finish(
        self, trainer: Trainer, pl_module: TunedModule, trained: Protection, drift: Callable[[], float]
    ) -> DenseEntries | None:
        """Measure the curve, then keep the budget.

        Args:
            trainer: its data and limits.
            pl_module: the model, tuned.
            trained: its entries; closed.
            drift: KL of the model as it is to its base.

        Returns:
            Smaller masks where updates were taken back for good; None if the model is as it was.
        """
        if self._order.levels is None:
            raise RuntimeError("the order of updates is told when masks are decided, in on_fit_start")
        start, module = time.monotonic(), reported_module(pl_module, self)
        updates, full = NestedUpdates(trained, self._order.levels), len(self._order.steps) - 1
        for level, ratio in enumerate(self._order.steps[:-1] if self.ratios else []):
            updates.keep(level)
            scores = module.score_tasks(module.tasks(), _loaders(trainer.val_dataloaders))
            self.points.append(CurvePoint(ratio, scores))
            rank_zero_info(f"Updates of the lowest {ratio:g}: {_said(scores)}")
        level = self._choose(trainer, module, updates, drift) if self.chooses else full
        updates.keep(full)
        self.seconds = time.monotonic() - start
        if level == full:
            return None
        announce_merge(trainer, pl_module)
        return updates.narrowed(level)

    def state_dict(self) -> dict[str, Any]:
        """Groups of the entries, on the first process, whose state alone is saved."""
        return self._order.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Groups of the run that is resumed: its scores cannot be told any more."""
        self._order.load_state_dict(state_dict)

    def _ratios_of(self, method: Scored) -> list[float]:
        ratio = method.update_ratio
        if self.ratios and self.ratios[-1] > ratio:
            raise DowserError(
                f"curve takes back what was trained: got the ratio {self.ratios[-1]}, above the dowser.method's "
                f"update_ratio {ratio}; train with the largest ratio of the curve"
            )
        asked = self.ratios or [round(share * ratio, 12) for share in _SHARES]
        steps = [*(each for each in asked if each != ratio), ratio]
        if len(steps) > _MOST_GROUPS:
            raise DowserError(f"curve takes up to {_MOST_GROUPS} ratios, got {len(steps)}")
        return steps

    def _choose(
        self, trainer: Trainer, module: ReportedModule, updates: NestedUpdates, drift: Callable[[], float]
    ) -> int:
        """The highest level that keeps the budget; the lowest if none does."""
        upstream = self._upstream(trainer, module)
        updates.keep(-1)
        base, drops, drifts, kept = upstream(), dict[float, float](), dict[float, float](), False
        for level in reversed(range(len(self._order.steps))):
            ratio = self._order.steps[level]
            updates.keep(level)
            if self.max_upstream_drop is not None:
                drops[ratio] = round(base - upstream(), 6)
                rank_zero_info(
                    f"Updates of the lowest {ratio:g}: {drops[ratio]:+.3f} upstream lost, on data to choose on"
                )
            if self.max_drift is not None:
                drifts[ratio] = drift()
                rank_zero_info(f"Updates of the lowest {ratio:g}: KL {drifts[ratio]:.2g} to the base")
            kept = _within(self.max_upstream_drop, drops, ratio) and _within(self.max_drift, drifts, ratio)
            if kept:
                break
        if not kept:
            rank_zero_warn(
                f"no update ratio of {self._order.steps} keeps the budget: the smallest, {ratio:g}, "
                f"{_lost(drops, drifts, ratio)} and is kept; give smaller ratios (--curve), or train with a lower "
                "learning rate. The checkpoint holds all updates"
            )
        drops, drifts = dict(sorted(drops.items())), dict(sorted(drifts.items()))
        self.choice = BudgetChoice(self.max_upstream_drop, ratio, kept, drops, self.max_drift, drifts)
        return level

    def _upstream(self, trainer: Trainer, module: ReportedModule) -> Callable[[], float]:
        """The upstream mean of the model as it is, on data to choose on; 0 where nothing is asked of it.

        The first time it must be the base model, which some metrics count in relation to.
        """
        if self.max_upstream_drop is None:
            return lambda: 0.0
        tasks = _selection(trainer)
        loaders = _loaders(trainer.datamodule.selection_dataloader())  # type: ignore[attr-defined]
        base: dict[str, float] = {}

        def mean() -> float:
            scores = module.score_tasks(tasks, loaders)
            base.update(scores if not base else {})
            return fmean(
                comparable(metric_label(task.metric), task.role, base[task.name], scores[task.name])
                for task in tasks
                if task.role == "upstream"
            )

        return mean


def _within(limit: float | None, measured: dict[float, float], ratio: float) -> bool:
    return limit is None or measured[ratio] <= limit


def _lost(drops: dict[float, float], drifts: dict[float, float], ratio: float) -> str:
    said = [f"loses {drops[ratio]:.3f} of the upstream mean"] if drops else []
    return " and ".join([*said, *([f"has KL {drifts[ratio]:.2g} to the base"] if drifts else [])])


def find_curve(trainer: Trainer) -> Curve:
    """The callback of a run; one that asks for nothing where there is none."""
    return find_callback(trainer, Curve) or Curve()


def _selection(trainer: Trainer) -> list[Any]:
    return list(getattr(trainer.datamodule, "selection_tasks", []))  # type: ignore[attr-defined]


def _loaders(loaders: Any) -> list[Any]:
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]


def _said(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
