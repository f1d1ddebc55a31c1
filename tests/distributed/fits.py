"""A whole run as a function that any number of ranks can call, and what is worth comparing of it."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback
from torch import Tensor, distributed

import dowser_pl.strategies  # noqa: F401
from dowser_pl.callbacks import Dowser, FailTogether
from dowser_pl.distributed.tensors import full_tensor, shape_of
from dowser_pl.importance import Probe
from dowser_pl.methods import ModelDowser
from dowser_pl.reporting import read_report
from tests.tiny_run import SMALL_PROBE, TinyData, build_module, build_trainer


class UnevenData(TinyData):
    """Three questions a task, which two ranks cannot share evenly, and answers of different lengths."""

    def __init__(self, num_rows: int = 13, batch_size: int = 4, eval_batch_size: int = 2) -> None:
        super().__init__(num_rows, batch_size)
        self.split_batches = True
        self.eval_batch_size = eval_batch_size

    def train_conversations(self):
        rows = super().train_conversations()
        for index, row in enumerate(rows):
            row.messages[1]["content"][0]["text"] += " and red" * (index % 4)
        return rows

    def evaluation_tasks(self):
        tasks = super().evaluation_tasks()
        for task in tasks:
            del task.questions[3:]
        return tasks


@dataclass
class Ended:
    """What one rank ended with; tensors are whole, whatever the strategy.

    Attributes:
        weights: the tuned matrices, and what was trained without a mask.
        way: the longest that an entry of a matrix moved from its base.
        seen: ids of the rows of every batch.
    """

    masks: dict[str, Tensor]
    weights: dict[str, Tensor]
    way: float
    frozen_digest: dict[str, str]
    scores: dict[str, float]
    counts: Any
    steps: int
    before: dict[str, float]
    report: dict[str, Any] | None = None
    seen: list[list[str]] = field(default_factory=list)


class Diary(Callback):
    """Ids of the rows of every batch that was trained on."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(list(batch["ids"]))


def sgd(parameters):
    """Unlike Adam it does not turn a rounding error of a tiny gradient into a whole step."""
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=0.01)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


OPTIMIZERS = {"sgd": sgd, "adamw": adamw}


def fit(
    folder: str | Path,
    model: str | Path,
    *,
    method: Any = None,
    strategy: str = "ddp",
    optimizer: str = "adamw",
    data: Any = None,
    num_rows: int = 12,
    batch_size: int = 4,
    module: dict[str, Any] | None = None,
    callbacks: tuple[Any, ...] = (),
    ckpt_path: str | None = None,
    patience: float = 30.0,
    probe: Probe = replace(SMALL_PROBE, batch_size=2),  # noqa: B008 - two batches, one for each of two ranks
    **options: Any,
) -> Ended:
    """A run on all ranks there are; ``batch_size`` is of all of them together.

    Args:
        folder: of the run.
        model: folder of the base model.
        method: of the callback; None = ModelDowser at 0.1.
        strategy: on several ranks; alone there is none.
        optimizer: ``sgd`` or ``adamw``.
        data: data module; None = ``TinyData(num_rows, batch_size)``.
        num_rows: of the data.
        batch_size: of the data.
        module: settings of the module.
        callbacks: more of them.
        ckpt_path: to go on from.
        patience: of `FailTogether`.
        probe: settings of the importance pass.
        **options: of :func:`tests.tiny_run.build_trainer` and the Trainer.
    """
    several = distributed.is_initialized()
    if data is None:
        data = TinyData(num_rows, batch_size)
        data.split_batches = True
    diary = Diary()
    trainer = build_trainer(
        Path(folder),
        method or ModelDowser(0.1),
        (diary, FailTogether(patience), *callbacks),
        devices=distributed.get_world_size() if several else 1,
        strategy=strategy if several else "auto",
        **options,
    )
    built = build_module(Path(model), **(module or {}))
    built.optimizer = OPTIMIZERS[optimizer]
    dowser = next(callback for callback in trainer.callbacks if isinstance(callback, Dowser))
    dowser.probe = probe
    writing = "dowser_pl.reporting.folder"
    with patch(f"{writing}.plot_report"), patch(f"{writing}.write_html"):  # they take longer than the rest of the run
        trainer.fit(built, datamodule=data, ckpt_path=ckpt_path)
    entries, state = dowser.entries, built.state_dict()
    also = {key: state[key] for key in dowser.base.whole}
    return Ended(
        masks={name: whole_mask(entries, name) for name in entries.masks},
        weights={name: full_tensor(weight).clone() for name, weight in (entries.weights | also).items()},
        way=max(longest_way(entries, name) for name in entries.weights),
        frozen_digest=dowser.frozen_digest,
        scores=built.scores,
        counts=dowser.counts,
        steps=trainer.global_step,
        before=next(c for c in trainer.callbacks if type(c).__name__ == "Forgetting").before,
        report=vars(read_report(Path(folder))) if trainer.is_global_zero else None,
        seen=diary.seen,
    )


def fit_all(folder: str | Path, model: str | Path, cases: dict[str, dict[str, Any]]) -> dict[str, Ended]:
    """One run after the other, by name; cheaper than a call each."""
    return {name: fit(Path(folder) / name, model, **case) for name, case in cases.items()}


def difference(one: Ended, other: Ended) -> float:
    """Largest difference of a weight."""
    return max(float((one.weights[name].double() - other.weights[name].double()).abs().max()) for name in one.weights)


def longest_way(entries: Any, name: str) -> float:
    """Of a trainable entry of one matrix."""
    moved = (entries.values(name).detach().cpu().view(-1) - entries.base_values(name).view(-1)).abs()
    return float(moved.max()) if moved.numel() else 0.0  # a rank may hold none of them


def whole_mask(entries: Any, name: str) -> Tensor:
    """Of the whole matrix, on every rank."""
    mask = entries.masks[name]
    if not entries.is_sharded:
        return mask.clone()
    parts = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, mask.flatten())
    return torch.cat(parts).view(shape_of(entries.weights[name]))
