"""Which directions the inputs of each matrix have on rows that the model wrote: what a null space is the rest of.

Forward passes alone: the second moments of the inputs are summed in float32 as the rows come by, for as many decoder
layers at once as fit a limit, and each is reduced to its directions before the next layers are looked at. Rows are run
once for each such group of layers.

Legend: I inputs of a matrix, r directions of them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from dowser_pl.distributed import collectives
from dowser_pl.distributed.models import device_of, measuring
from dowser_pl.errors import DowserError
from dowser_pl.functional.null_space import Directions, check_directions, directions_of
from dowser_pl.importance.gram import InputGrams, grouped
from dowser_pl.importance.probe import stacked
from dowser_pl.importance.prompts import Prompt, TextInputs, alike, plain_text

__all__ = ["GRAM_BYTES", "first_tokens", "input_directions", "input_moments", "num_words"]

GRAM_BYTES = 1 << 32
"""Bytes of second moments that are summed in one pass over the rows."""


def num_words(prompts: Sequence[Prompt]) -> int:
    """How many tokens of prompts are text; what stands for a picture is none."""
    return sum(len(prompt.tokens) if prompt.is_text is None else int(prompt.is_text.sum()) for prompt in prompts)


def first_tokens(prompts: Sequence[Prompt], tokens: int) -> list[Prompt]:
    """The first prompts with so many tokens of text together, of all kinds in turns; all, where they have fewer."""
    before, places = Counter[str](), list[int]()
    for prompt in prompts:
        places.append(before[prompt.kind])
        before[prompt.kind] += 1
    chosen: list[Prompt] = []
    for prompt in (prompts[number] for number in sorted(range(len(prompts)), key=places.__getitem__)):
        if tokens <= 0:
            break
        chosen.append(prompt)
        tokens -= num_words([prompt])
    return chosen


def input_directions(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    blocks: Mapping[str, str],
    prompts: Sequence[Prompt],
    eps: float,
    rank: int | None,
    batch_size: int = 16,
    text_inputs: TextInputs = plain_text,
    limit: int = GRAM_BYTES,
    dtype: torch.dtype | None = None,
) -> dict[str, Directions]:
    """Measure what every matrix takes in on the prompts, and keep its directions.

    All processes get the directions of the first.

    Args:
        model: see `input_moments`.
        layers: see there.
        blocks: see there.
        prompts: see there.
        eps: see `dowser_pl.functional.null_space.directions_of`.
        rank: see there.
        batch_size: see `input_moments`.
        text_inputs: see there.
        limit: see there.
        dtype: of the vectors; None = that of the weight, which packed weights do not have.

    Returns:
        Name -> directions with vectors in that dtype, on the device of the inputs; matrices that share
        an input share one object.

    Raises:
        DowserError: if there are no prompts, or a matrix takes nothing in.
    """
    check_directions(eps, rank)
    found: dict[str, Directions] = {}
    for names, moment in input_moments(model, layers, blocks, prompts, batch_size, text_inputs, limit):
        directions = directions_of(moment, eps, rank)
        found |= dict.fromkeys(names, _same_on_all(directions, dtype or layers[names[0]].weight.dtype))
    return {name: found[name] for name in layers}


def input_moments(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    blocks: Mapping[str, str],
    prompts: Sequence[Prompt],
    batch_size: int = 16,
    text_inputs: TextInputs = plain_text,
    limit: int = GRAM_BYTES,
) -> Iterator[tuple[list[str], Tensor]]:
    """Measure what every matrix takes in on the prompts.

    Several processes share the prompts, and run the model equally often.

    Args:
        model: runs the prompts; in `probing_mode`.
        layers: run-time name -> linear module.
        blocks: name -> the decoder layer it lies in; see `dowser_pl.models.layers.find_blocks`.
        prompts: whose every token of text counts alike; the positions of a picture count together at most as much as
            the text of its row, of which there is much less.
        batch_size: prompts that are run at a time; of encoder-decoders one.
        text_inputs: what the model takes for tokens and their mask, where that is more than the two.
        limit: bytes of second moments in one pass over the prompts; one decoder layer is measured whatever it takes.

    Yields:
        The names of matrices that share an input, and (I, I) float32, the mean of h h^T over it. It is let go of then.

    Raises:
        DowserError: if there are no prompts, or a matrix takes nothing in.
    """
    if not prompts:
        raise DowserError("got no prompts to measure inputs on, expected at least one")
    batches = [[prompts[number] for number in numbers] for numbers in alike(prompts, batch_size)]
    for group in grouped(layers, blocks, limit):
        grams = _summed(model, group, batches, text_inputs)
        owners: dict[str, list[str]] = {}
        for name in group:
            owners.setdefault(grams.shared_with(name), []).append(name)
        for owner, names in owners.items():
            yield names, grams.mean(owner)
            del grams.sums[owner]


@torch.no_grad()
def _summed(
    model: nn.Module, layers: Mapping[str, nn.Linear], batches: Sequence[list[Prompt]], text_inputs: TextInputs
) -> InputGrams:
    """Sums over all batches; each process runs every n-th and as many as the others, since they may do so in step."""
    grams = InputGrams(layers)
    world = collectives.world_size()
    missing = -len(batches) % world  # so many processes have none in the first round: they run one and forget it
    for number in range(collectives.rank() - missing, len(batches), world):
        inputs, positions = stacked(batches[max(number, 0)], device_of(model), text_inputs)
        with measuring(model), grams:
            weights = _weights(batches[max(number, 0)], positions)
            grams.start(positions, weights, inputs)
            model(**inputs, use_cache=False)
        if number < 0:
            grams.clear()
    for name, total in grams.sums.items():
        collectives.all_reduce(total)
        count = torch.tensor(grams.counts[name], dtype=torch.float64, device=total.device)
        collectives.all_reduce(count)
        grams.counts[name] = float(count)
    return grams


def _weights(batch: Sequence[Prompt], positions: Tensor) -> Tensor | None:
    """(B, T): the many positions of a picture together count as much as the words of its row, and never more each."""
    if all(prompt.is_text is None or bool(prompt.is_text.all()) for prompt in batch):
        return None
    weights = positions.float()
    for row, prompt in enumerate(batch):
        if prompt.is_text is not None:
            is_text = prompt.is_text.to(weights.device)
            share = is_text.sum() / (~is_text).sum().clamp(min=1)
            weights[row, : len(is_text)] = torch.where(is_text, 1.0, share.clamp(max=1.0))
    return weights


def _same_on_all(directions: Directions, dtype: torch.dtype) -> Directions:
    """Those of the first process: an eigen-decomposition may differ in its last bits from device to device."""
    vectors, shares = directions.vectors.to(dtype), directions.shares
    if collectives.world_size() == 1:
        return Directions(vectors, shares)
    size = int(collectives.broadcast(torch.tensor(len(shares))))
    return Directions(_sent(vectors, (len(vectors), size)), _sent(shares, (size,)))


def _sent(mine: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor of the first process, which has this shape, where that of this process lies."""
    here = mine if tuple(mine.shape) == shape else mine.new_empty(shape)
    return collectives.broadcast(here).to(mine.device)
