"""How prompts are cut into batches: at fixed places, smaller where memory is too small, shared where weights are."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from dowser_pl.distributed import collectives
from dowser_pl.errors import DowserError

__all__ = ["aligned", "halving", "in_step", "read_all"]

T = TypeVar("T")


def aligned(indices: range, size: int) -> Iterator[range]:
    """Batches that begin at multiples of `size`, so that a prompt's neighbours do not depend on where one starts."""
    start = indices.start
    while start < indices.stop:
        stop = min((start // size + 1) * size, indices.stop)
        yield range(start, stop)
        start = stop


def halving(run: Callable[[range], T], indices: range, option: str, can_repeat: bool = True) -> list[T]:
    """Results of `run` on the indices, in as few halves as the memory of the GPU allows.

    Args:
        run: works on a batch.
        indices: of the batch.
        option: the setting to lower, for the message.
        can_repeat: whether a batch may be run again; not where sums over batches are half made, nor where the other
            processes are in the middle of theirs and wait for this one.

    Raises:
        DowserError: if even one prompt is too much, or the batch may not be run again.
    """
    try:
        return [run(indices)]
    except torch.OutOfMemoryError as error:
        if len(indices) == 1:
            raise DowserError(
                f"the GPU has too little free memory for one prompt ({error}); lower --dowser.probe.num_tokens, load "
                "the model in bfloat16 (--model.dtype), or use a GPU with more memory"
            ) from error
        if not can_repeat:
            raise DowserError(
                f"{len(indices)} prompts at a time do not fit the GPU ({error}); lower {option}"
            ) from error
    torch.cuda.empty_cache()  # outside of `except`, whose traceback would keep the tensors alive
    middle = indices.start + len(indices) // 2
    warnings.warn(f"{len(indices)} prompts at a time do not fit the GPU; trying half as many ({option})", stacklevel=2)
    return [
        part
        for half in (range(indices.start, middle), range(middle, indices.stop))
        for part in halving(run, half, option)
    ]


def read_all(read: Callable[[list[int]], T], batches: Iterable[list[int]], together: bool) -> Iterator[T]:
    """Read every batch of rows, one that does not fit the GPU in halves.

    Args:
        read: reads the rows of these numbers.
        batches: numbers of rows.
        together: whether processes run the model only together, in which case nothing can be read in halves.

    Yields:
        What `read` returned, each time when it is asked for.

    Raises:
        DowserError: if even one row is too much, or what is too much may not be halved.
    """
    for numbers in batches:
        yield from halving(
            lambda part, numbers=numbers: read(numbers[part.start : part.stop]),  # type: ignore[misc]
            range(len(numbers)),
            "--dowser.rows.batch_size",
            can_repeat=not together,
        )


def in_step(run: Callable[[range], T], batches: Sequence[range], option: str) -> list[T]:
    """Results of `run` on all batches, on every process, where processes can run a model only together.

    They take turns; one that has nothing left repeats a batch for the others' sake. What fails on one is not held back
    until all have come to an end: the others would wait for it inside the model. So a batch that does not fit is not
    halved either.

    Args:
        run: works on a batch.
        batches: of all processes.
        option: the setting to lower where one does not fit, for the message.

    Raises:
        DowserError: if a batch is too much for the memory of this process.
    """
    mine: dict[int, T] = {}
    for first in range(0, len(batches), collectives.world_size()):
        number = first + collectives.rank()
        (result,) = halving(run, batches[min(number, len(batches) - 1)], option, can_repeat=False)
        if number < len(batches):
            mine[number] = result
    return collectives.all_gather_numbered(lambda: mine)
