"""The data loaders, one item of whose datasets is one encoded batch, and which rows make which batch.

Orders are pure functions of (seed, epoch, rank), so that a killed run can go on exactly. They hand out whole batches
(lists of row numbers). They are `DistributedSampler`s because that is the sign by which Lightning knows that a loader
already splits its rows over the processes and leaves it alone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import compress, pairwise
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from dowser_pl.data.encoding import Encoder
from dowser_pl.data.rows import Conversation, Question
from dowser_pl.errors import DowserError

Batch = dict[str, Any]
CUT, LEFT_OUT = 1, 2
_TRIES = 1000  # rows that are tried in a row; then it is not the rows


class TrainingBatches(Dataset[Batch]):
    """Row numbers -> training batch, encoded in whichever worker asks.

    A row that anything refuses is an error that names it. With `skip_bad` it is left out instead, wherever it is found,
    and its batch is smaller by it; where that would leave no row, the next usable one by number stands in (in the file,
    after the last the first). So the batches are a function of the rows alone: the same in any worker, on any process
    and after a resume, and all processes take equally many steps.

    Args:
        conversations: the training rows.
        encoder: what encodes them.
        marks: (rows,) uint8 in shared memory: `CUT` for a row that lost text to `max_length`, `LEFT_OUT`, else 0.
        skip_bad: whether rows may be left out.
    """

    def __init__(
        self, conversations: Sequence[Conversation], encoder: Encoder, marks: torch.Tensor, skip_bad: bool = False
    ) -> None:
        self.conversations = conversations
        self.encoder = encoder
        self.marks = marks
        self.skip_bad = skip_bad

    def __getitem__(self, rows: list[int]) -> Batch:
        if not self.skip_bad:
            return self._encode(rows)
        wanted = [row for row in rows if self.marks[row] != LEFT_OUT]
        if wanted:
            try:
                return self._encode(wanted)
            except ValueError:
                usable = [row for row in wanted if self._usable(row)]
                if usable:
                    return self._encode(usable)
        return self._encode([self._stand_in(rows[0])])

    def __len__(self) -> int:
        return len(self.conversations)

    def refusal(self, row: int) -> str | None:
        """Why a row cannot be encoded, and then it is marked; None = it can."""
        try:
            self._encode([row])
        except ValueError as error:
            self.marks[row] = LEFT_OUT
            return str(error)
        return None

    def _encode(self, rows: list[int]) -> Batch:
        batch, cut = self.encoder.training_batch([self.conversations[row] for row in rows])
        for row in compress(rows, cut):
            self.marks[row] = CUT
        return batch

    def _usable(self, row: int) -> bool:
        why = self.refusal(row)
        if why is not None:
            warnings.warn(f"left out (skip_bad_rows): {why}", stacklevel=2)
        return why is None

    def _stand_in(self, row: int) -> int:
        for step in range(1, min(len(self), _TRIES)):
            other = (row + step) % len(self)
            if self.marks[other] != LEFT_OUT and self._usable(other):
                return other
        raise DowserError(
            f"No row is usable: row {row + 1} of the training rows and the {min(len(self), _TRIES) - 1} after it were "
            "all left out (skip_bad_rows). The reasons are above; the last: " + str(self.refusal(row))
        )


class EvaluationBatches(Dataset[Batch]):
    """Row numbers -> evaluation batch.

    Args:
        questions: the rows.
        encoder: what encodes them.
        cache_mb: how many MiB of batches a loader may keep.
    """

    def __init__(self, questions: Sequence[Question], encoder: Encoder, cache_mb: int = 0) -> None:
        self.questions = questions
        self.encoder = encoder
        self.cache_mb = cache_mb

    def __getitem__(self, rows: list[int]) -> Batch:
        return self.encoder.evaluation_batch([self.questions[row] for row in rows])

    def __len__(self) -> int:
        return len(self.questions)


class _Refusals(Dataset[str | None]):
    """Row number -> why it cannot be encoded, or None."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches

    def __getitem__(self, row: int) -> str | None:
        if self.batches.skip_bad:
            return self.batches.refusal(row)
        _ = self.batches[[row]]
        return None


def refusals(batches: TrainingBatches, rows: Sequence[int], num_workers: int) -> list[str]:
    """Encode each of the rows by itself; why those that were left out cannot be.

    Raises:
        DowserError: one cannot be encoded, and rows may not be left out.
    """
    found: DataLoader[Any] = DataLoader(
        _Refusals(batches),
        batch_size=None,
        sampler=rows,
        num_workers=num_workers,
        worker_init_fn=_start_worker if num_workers else None,
        generator=torch.Generator(),
    )
    return [why for why in found if why is not None]


class BatchLoader(DataLoader[Any]):
    """A loader that touches its sampler only when the first batch is asked for.

    `DataLoader.__iter__` starts its workers, and they read ahead. Lightning calls `iter` on the training loader before
    it has restored the epoch and the position inside it, so the workers of a plain loader would read ahead in the
    order of the wrong epoch.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator, so that nothing starts yet
        yield from super().__iter__()


class TrainingLoader(BatchLoader):
    """Says to Lightning, by having `state_dict`, that it can be resumed in mid epoch.

    The position itself is kept by `MultimodalData.state_dict`: Lightning restores it before the loader exists, the
    loader's own state only after.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing needs to be kept: batches are a function of the seed and the step."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing needs to be restored."""


class EvaluationLoader(BatchLoader):
    """Keeps its encoded batches in memory once it was read to the end, if they fit into `cache_mb` of its dataset.

    Evaluation sets are read after every epoch and drawing, resizing and normalising the images again would often cost
    more than answering. Batches come out as shallow copies: take keys out of them, but do not write into the tensors.
    """

    _cache: list[Batch] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # see BatchLoader
        if self._cache is not None:
            yield from map(_shallow_copy, self._cache)
            return
        kept: list[Batch] = []
        room = self.dataset.cache_mb * 2**20  # type: ignore[attr-defined]
        for batch in super().__iter__():
            room -= _num_bytes(batch)
            if room >= 0:
                kept.append(batch)
            yield _shallow_copy(batch)
        if room >= 0:
            self._cache = kept


Loader = TypeVar("Loader", bound=BatchLoader)


def build_loader(
    kind: type[Loader], batches: Dataset[Batch], order: DistributedSampler[Any], num_workers: int
) -> Loader:
    """A loader over `batches` in the order of `order`."""
    return kind(
        batches,
        batch_size=None,  # the order hands out whole batches
        sampler=order,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker if num_workers else None,
        generator=torch.Generator(),  # a loader would draw from the global one when it starts, and shift dropout
    )


def _start_worker(_: int) -> None:
    """Fast tokenizers complain after a fork unless told, in the child, that they shall not use threads."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _shallow_copy(batch: Batch) -> Batch:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in batch.items()}


def _num_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_num_bytes, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return sum(map(_num_bytes, value))
    return 0


class ResumableSampler(DistributedSampler[Any]):
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
            DowserError: these were batches of another layout, so other rows would count as done.
        """
        if num_done and _steps(layout) != _steps(self.layout()):
            rows, advice = _steps(layout)[2], "Use the same data and settings"
            if _steps(layout)[:2] == _steps(self.layout())[:2] and rows % self.num_replicas == 0:
                advice = f"Set data.batch_size so that each of the {self.num_replicas} processes has "
                advice += f"{rows // self.num_replicas} rows a step"
            raise DowserError(
                f"The checkpoint was written in the middle of an epoch with {layout}, this run has {self.layout()}. "
                f"{advice}, or resume from a checkpoint written at the end of an epoch."
            )
        self._resumed_epoch = epoch
        self._num_done = num_done

    def batches(self, epoch: int) -> list[list[int]]:
        """Every batch of this process in an epoch, in order."""
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


class EvaluationSampler(DistributedSampler[Any]):
    """Every row exactly once over all processes, in file order, with equally many batches on each process.

    Equal batch counts matter because sharded models talk to each other inside `generate`; no row is repeated, so a
    metric summed over the processes is the metric of the set.
    """

    def __init__(self, num_rows: int, batch_size: int, rank: int = 0, num_replicas: int = 1) -> None:
        super().__init__(cast(Any, range(num_rows)), num_replicas, rank, shuffle=False)
        if num_rows < num_replicas:
            raise DowserError(
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
        DowserError: they cannot be shared evenly.
    """
    if batch_size % num_replicas:
        raise DowserError(
            f"With split_batches, batch_size must be a multiple of the number of processes, got {batch_size} rows for "
            f"{num_replicas} processes. Set data.batch_size to a multiple, or data.split_batches to false."
        )
    return batch_size // num_replicas


def _steps(layout: dict[str, int]) -> tuple[int, int, int]:
    """Everything that decides which rows are in which step: how many there are, their shuffle, rows of a step."""
    return layout["num_rows"], layout["seed"], layout["batch_size"] * layout["num_replicas"]


def _ceil(dividend: int, divisor: int) -> int:
    return (dividend + divisor - 1) // divisor
