"""How prompts are cut into batches: at fixed places, and smaller where the memory of the device is too small."""

import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

__all__ = ["aligned", "halving"]

T = TypeVar("T")


def aligned(indices: range, size: int) -> Iterator[range]:
    """Batches that begin at multiples of ``size``, so that a prompt's neighbours do not depend on where one starts."""
    start = indices.start
    while start < indices.stop:
        stop = min((start // size + 1) * size, indices.stop)
        yield range(start, stop)
        start = stop


def halving(run: Callable[[range], T], indices: range, option: str, can_repeat: bool = True) -> list[T]:
    """Results of ``run`` on the indices, in as few halves as the memory of the GPU allows.

    Args:
        run: works on a batch.
        indices: of the batch.
        option: the setting to lower, for the message.
        can_repeat: whether a batch may be run again; not where sums over batches are half made.

    Raises:
        ValueError: if even one prompt is too much, or the batch may not be run again.
    """
    try:
        return [run(indices)]
    except torch.OutOfMemoryError as error:
        if not can_repeat:
            raise ValueError(
                f"{len(indices)} prompts at a time do not fit the GPU ({error}); lower {option}"
            ) from error
        if len(indices) == 1:
            raise ValueError(
                f"the GPU has too little free memory for one prompt ({error}); lower --dowser.probe.num_tokens, load "
                "the model in bfloat16 (--model.dtype), or use a GPU with more memory"
            ) from error
    torch.cuda.empty_cache()  # outside of `except`, whose traceback would keep the tensors alive
    middle = indices.start + len(indices) // 2
    warnings.warn(f"{len(indices)} prompts at a time do not fit the GPU; trying half as many ({option})", stacklevel=2)
    return [
        part
        for half in (range(indices.start, middle), range(middle, indices.stop))
        for part in halving(run, half, option)
    ]
