"""A whole run as a function that any number of ranks can call, and what is worth comparing of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, distributed

from dowser_pl.callbacks import Dowser, FailTogether
from dowser_pl.methods import ModelDowser
from dowser_pl.reporting import read_report
from tests.tiny_run import TinyData, build_module, build_trainer


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
    """What one rank ended with; tensors are whole, whatever the strategy."""

    masks: dict[str, Tensor]
    weights: dict[str, Tensor]
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
    trainer.fit(built, datamodule=data, ckpt_path=ckpt_path)
    dowser = next(callback for callback in trainer.callbacks if isinstance(callback, Dowser))
    entries = dowser.entries
    return Ended(
        masks={name: mask.clone() for name, mask in entries.masks.items()},
        weights={name: weight.detach().clone() for name, weight in entries.weights.items()},
        frozen_digest=dowser.frozen_digest,
        scores=built.scores,
        counts=dowser.counts,
        steps=trainer.global_step,
        before=next(c for c in trainer.callbacks if type(c).__name__ == "Forgetting").before,
        report=vars(read_report(Path(folder))) if trainer.is_global_zero else None,
        seen=diary.seen,
    )


def difference(one: Ended, other: Ended) -> float:
    """Largest difference of a weight."""
    return max(float((one.weights[name].double() - other.weights[name].double()).abs().max()) for name in one.weights)


def moved(one: Ended, base: dict[str, Tensor]) -> float:
    """Largest way of a weight from its base."""
    return max(float((one.weights[name].double() - base[name].double()).abs().max()) for name in one.weights)
