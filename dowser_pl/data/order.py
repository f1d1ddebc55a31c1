"""Which rows make which batch: pure functions of (seed, epoch, rank), so that a killed run can go on exactly.

Both orders hand out whole batches (lists of row numbers). They are `DistributedSampler`s because that is the sign by
which Lightning knows that a loader already splits its rows over the processes and leaves it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, cast

import torch
from torch.utils.data import DistributedSampler


class TrainingOrder(DistributedSampler[Any]):
    """A fresh shuffle of all rows in every epoch, cut into batches.

    Every row comes once per epoch. With `num_replicas` processes each takes every `num_replicas`-th row of the
    shuffle; up to `num_replicas - 1` rows come twice so that all processes make equally many steps.

    Args:
        num_rows: in the training set.
        batch_size: rows per process.
        seed: of all shuffles.
        rank: of this process.
        num_replicas: how many processes share the rows.
        clock: tells the current epoch when a pass begins; without one it is what `set_epoch` was given. Under a
            trainer only `trainer.current_epoch` is right: after a resume with `max_steps` at the end of an epoch,
            Lightning 2.6 goes through that epoch a second time without taking batches, and the number that it passes
            to `set_epoch` is one too high from then on.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        num_replicas: int = 1,
        clock: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(cast(Any, range(num_rows)), num_replicas, rank, shuffle=True, seed=seed)
        self.num_rows = num_rows
        self.batch_size = batch_size
        self._clock = clock or (lambda: self.epoch)
        self.begun: int | None = None
        """The epoch whose batches were last begun to be handed out; None = none yet."""
        self._resumed_epoch = -1
        self._num_done = 0

    def layout(self) -> dict[str, int]:
        """Everything that decides which rows are in which batch."""
        return {
            "num_rows": self.num_rows,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "num_replicas": self.num_replicas,
        }

    def resume(self, epoch: int, num_done: int, **layout: int) -> None:
        """Leave out the first `num_done` batches of `epoch`, and of no other epoch.

        What all processes take in a step is one piece of the shuffle, so another number of them goes on with the same
        rows where a step has as many rows as before.

        Raises:
            ValueError: these were batches of another layout, so other rows would count as done.
        """
        if num_done and _steps(layout) != _steps(self.layout()):
            rows, advice = _steps(layout)[2], "Use the same data and settings"
            if _steps(layout)[:2] == _steps(self.layout())[:2] and rows % self.num_replicas == 0:
                advice = f"Set data.batch_size so that each of the {self.num_replicas} processes has "
                advice += f"{rows // self.num_replicas} rows a step"
            raise ValueError(
                f"The checkpoint was written in the middle of an epoch with {layout}, this run has {self.layout()}. "
                f"{advice}, or resume from a checkpoint written at the end of an epoch."
            )
        self._resumed_epoch = epoch
        self._num_done = num_done

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of this process in an epoch, in order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        rows = torch.randperm(self.num_rows, generator=generator).tolist()
        rows += rows[: -self.num_rows % self.num_replicas]
        while len(rows) % self.num_replicas:  # fewer rows than processes
            rows.append(rows[0])
        mine = rows[self.rank :: self.num_replicas]
        return [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.begun = self._clock()
        done = self._num_done if epoch == self._resumed_epoch else 0
        yield from self.batches(epoch)[done:]

    def __len__(self) -> int:
        """Batches of a whole epoch, also while a resumed epoch yields fewer: Lightning adds the ones already done."""
        return _ceil(_ceil(self.num_rows, self.num_replicas), self.batch_size)


class EvaluationOrder(DistributedSampler[Any]):
    """Every row exactly once over all processes, in file order, with equally many batches on each process.

    Equal batch counts matter because sharded models talk to each other inside `generate`; no row is repeated, so a
    metric summed over the processes is the metric of the set.
    """

    def __init__(self, num_rows: int, batch_size: int, rank: int = 0, num_replicas: int = 1) -> None:
        super().__init__(cast(Any, range(num_rows)), num_replicas, rank, shuffle=False)
        if num_rows < num_replicas:
            raise ValueError(
                f"An evaluation set has {num_rows} rows, fewer than the {num_replicas} processes that share it. "
                "Use a larger set or fewer devices."
            )
        self.num_rows = num_rows
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        mine = range(self.rank, self.num_rows, self.num_replicas)
        bounds = [len(mine) * i // len(self) for i in range(len(self) + 1)]
        for start, end in pairwise(bounds):
            yield list(mine[start:end])

    def __len__(self) -> int:
        """Batches of every process; with `batch_size=1` and an uneven split one of them has two rows."""
        batches = _ceil(_ceil(self.num_rows, self.num_replicas), self.batch_size)
        return min(batches, self.num_rows // self.num_replicas)


def per_process(batch_size: int, num_replicas: int) -> int:
    """Rows of one process in a step in which all of them take `batch_size`.

    Raises:
        ValueError: they cannot be shared evenly.
    """
    if batch_size % num_replicas:
        raise ValueError(
            f"With split_batches, batch_size must be a multiple of the number of processes, got {batch_size} rows for "
            f"{num_replicas} processes. Set data.batch_size to a multiple, or data.split_batches to false."
        )
    return batch_size // num_replicas


def _steps(layout: dict[str, int]) -> tuple[int, int, int]:
    """Everything that decides which rows are in which step: how many there are, their shuffle, rows of a step."""
    return layout["num_rows"], layout["seed"], layout["batch_size"] * layout["num_replicas"]


def _ceil(dividend: int, divisor: int) -> int:
    return (dividend + divisor - 1) // divisor
