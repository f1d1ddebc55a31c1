"""The importance pass: one forward per batch of prompts, then one backward per Rademacher probe.

Hutchinson: for xi in {-1, +1}^V, E[(d(xi . f) / dz_i)^2] = ||J_i||^2 with f the logits at the last position
(arXiv 2602.04509, section 3). The graph is kept for all probes of a batch; weights take no gradient, so a
backward costs half of a training backward and no weight-sized memory. The head runs on the probed position alone.

Legend: N prompts, B prompts of a batch, T positions, V vocabulary, R probes.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dowser_pl.distributed import collectives
from dowser_pl.distributed.models import device_of, is_sharded_model, measuring
from dowser_pl.errors import DowserError
from dowser_pl.functional.random_streams import stream
from dowser_pl.importance.batches import aligned, halving, in_step
from dowser_pl.importance.factors import Factors, Statistics, in_order, joined
from dowser_pl.importance.prompts import Prompt, TextInputs, alike, plain_text
from dowser_pl.importance.recorder import FACTORS, Recorder, live_rows_only
from dowser_pl.importance.settings import Probe
from dowser_pl.models.likelihood import logits_at

__all__ = ["measure", "probing_mode", "stacked"]

_OPTION = "--dowser.probe.batch_size"


def measure(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    prompts: Sequence[Prompt],
    settings: Probe,
    statistics: Collection[str] = FACTORS,
    first: int = 0,
    on_batch: Callable[[int], None] = lambda _: None,
    text_inputs: TextInputs = plain_text,
) -> Factors:
    """Measure every layer on the prompts `first`, `first + 1` ...

    With several processes each takes every n-th batch and all get all factors, the same as one process would; where
    the weights are sharded over them, in step.

    Args:
        model: runs the prompts; in `probing_mode`.
        layers: run-time name -> linear module; every one must lie on the way from the embeddings to the logits.
        prompts: in order.
        settings: number of probes, batch and seed.
        statistics: what to measure; see `dowser_pl.importance.recorder.Recorder`.
        first: number of the first prompt, which fixes its probes.
        on_batch: told the number of prompts done, for a progress bar.
        text_inputs: what the model takes for tokens and their mask, where that is more than the two.

    Returns:
        One row per prompt, on the CPU in float32.

    Raises:
        DowserError: if a layer is not reached, a number is not finite, one prompt is too much for the memory (a batch,
            where the weights are sharded over processes), or statistics are asked for that are as large as those.
    """
    sharded = is_sharded_model(model)
    if sharded and set(statistics) - set(FACTORS):
        raise DowserError(
            f"{', '.join(sorted(set(statistics) - set(FACTORS)))} is a float32 number per weight of the model on every "
            "process, and the weights are sharded over processes because they do not fit one. Use an estimator with "
            "factors (--dowser.method.estimator authors or paper), or --trainer.strategy ddp"
        )
    recorder = Recorder(layers, statistics)
    order, ranges = _batches(prompts, first, settings.batch_size)
    batches = list(enumerate(ranges))
    if (
        not recorder.products and not sharded
    ):  # sums over prompts are not split: their rounding would depend on the split
        batches = batches[collectives.rank() :: collectives.world_size()]

    def run(places: range) -> Statistics:
        indices = [order[place] for place in places]
        batch = [prompts[index - first] for index in indices]
        return _measure_batch(model, recorder, batch, indices, settings, text_inputs)

    def run_share() -> dict[int, Statistics]:
        rows: dict[int, Statistics] = {}
        for number, indices in batches:
            done = halving(run, indices, _OPTION, can_repeat=not recorder.products)
            rows[number] = joined(done)
            on_batch(len(indices))
        return rows

    def run_in_step(indices: range) -> Statistics:
        rows = run(indices)
        on_batch(len(indices))
        return rows

    shares = in_step(run_in_step, ranges, _OPTION) if sharded else collectives.all_gather_numbered(run_share)
    layers_measured = in_order(joined(shares), [index - first for index in order])
    count = len(prompts) * settings.num_probes
    for statistic, sums in recorder.products.items():
        for name, total in sums.items():
            layers_measured.setdefault(name, {})[statistic] = total.div_(count).cpu()
    return Factors(layers_measured, len(prompts)).checked()


def _batches(prompts: Sequence[Prompt], first: int, size: int) -> tuple[list[int], list[range]]:
    """Numbers of the prompts in the order in which they are run, and batches as places in it.

    They begin at multiples of the size, so that a prompt's neighbours do not depend on where one starts; prompts that a
    model cannot read together, such as of pictures and of text, are batches of their own.
    """
    order: list[int] = []
    batches: list[range] = []
    for indices in aligned(range(first, first + len(prompts)), size):
        for group in alike([prompts[index - first] for index in indices], size):
            batches.append(range(len(order), len(order) + len(group)))
            order += [indices.start + number for number in group]
    return order, batches


def _measure_batch(
    model: nn.Module,
    recorder: Recorder,
    batch: list[Prompt],
    indices: Sequence[int],
    settings: Probe,
    text_inputs: TextInputs,
) -> Statistics:
    inputs, positions = stacked(batch, device_of(model), text_inputs)
    with measuring(model), live_rows_only(recorder.layers), recorder:  # not while the model writes the next prompts
        recorder.start(positions, inputs)
        logits, probed = _probed_logits(model, inputs, positions, settings)
        _backward(logits, probed, indices, settings)
        recorder.check_complete()
    recorded = [value for of_layers in recorder.factors.values() for value in of_layers.values()]
    on_host = _on_host({id(value): value for value in recorded})  # matrices with the same input keep sharing one tensor
    rows: Statistics = {name: {} for name in recorder.layers}
    for statistic, of_layers in recorder.factors.items():
        for name, value in of_layers.items():
            rows[name][statistic] = on_host[id(value)]
        if statistic != "activation" and settings.num_probes > 1:
            for value in of_layers.values():
                on_host[id(value)].div_(settings.num_probes)
    return rows


def _on_host(tensors: dict[int, Tensor]) -> dict[int, Tensor]:
    """The same tensors in host memory: in one copy, because a GPU waits as long for each of many small ones."""
    values = list(tensors.values())
    if not values or values[0].device.type == "cpu":
        return tensors
    flat = torch.cat([value.flatten() for value in values]).cpu()
    parts = flat.split([value.numel() for value in values])
    return {key: part.view(value.shape) for (key, value), part in zip(tensors.items(), parts, strict=True)}


@contextmanager
def probing_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode and frozen weights; both undone on exit."""
    training = [module for module in model.modules() if module.training]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def _backward(logits: Tensor, probed: Tensor, indices: Sequence[int], settings: Probe) -> None:
    """R backward passes over one graph; the recorder's hooks see the output gradients on the way.

    Args:
        logits: (B, P, V) float32.
        probed: (B, P) bool, True = probed position.
        indices: numbers of the prompts, which fix their probes.
        settings: number of probes and seed.
    """
    streams = [stream(settings.seed, "probe", index) for index in indices]
    for probe in range(settings.num_probes):
        signs = torch.zeros(logits.shape, dtype=torch.float32)
        for row, random in enumerate(streams):
            count = int(probed[row].sum())
            signs[row, :count] = torch.randint(0, 2, (count, logits.shape[-1]), generator=random) * 2.0 - 1.0
        # one scalar for the whole batch: rows do not influence each other, so its gradient splits by row
        total = (signs.to(logits) * logits).sum()
        if total.requires_grad:  # if not, the recorder says which matrices were not reached
            total.backward(retain_graph=probe < settings.num_probes - 1)


def _probed_logits(
    model: nn.Module, inputs: dict[str, Tensor], positions: Tensor, settings: Probe
) -> tuple[Tensor, Tensor]:
    """(B, P, V) float32 logits, probed positions first in each row, and the (B, P) mask of probed positions."""
    if settings.positions == "all":
        return model(**inputs, use_cache=False).logits.float(), positions
    columns, place = (positions.sum(dim=1) - 1).unique(return_inverse=True)
    logits = logits_at(model, inputs, columns)
    chosen = logits[torch.arange(len(logits), device=logits.device), place]
    return chosen[:, None].float(), positions[:, :1]


def stacked(batch: list[Prompt], device: torch.device, text_inputs: TextInputs) -> tuple[dict[str, Tensor], Tensor]:
    """Right-padded model inputs, and the (B, T) mask of real positions.

    Args:
        batch: prompts of one kind: all with image inputs of the same shapes, or all without.
        device: of the result.
        text_inputs: what the model takes for tokens and their mask.
    """
    lengths = torch.tensor([len(prompt.tokens) for prompt in batch])
    longest = int(lengths.max())
    tokens = torch.zeros(len(batch), longest, dtype=torch.int64)
    for row, prompt in enumerate(batch):
        tokens[row, : len(prompt.tokens)] = prompt.tokens
    positions = torch.arange(longest) < lengths[:, None]
    inputs: dict[str, Tensor] = {}
    for name in batch[0].image:
        parts = [prompt.image[name] for prompt in batch]
        if name.endswith("token_type_ids"):  # one entry per token: text that was written later is of the type of text
            of_text = text_inputs(tokens[:1, :1], tokens[:1, :1]).get(name, torch.zeros(()))
            parts = [nn.functional.pad(part, (0, longest - part.shape[-1]), value=int(of_text)) for part in parts]
        if name == "cross_attention_mask":  # and what the last token of the prompt sees
            later = [part[:, -1:].expand(-1, longest - part.shape[1], -1, -1) for part in parts]
            parts = [torch.cat(pair, dim=1) for pair in zip(parts, later, strict=True)]
        inputs[name] = torch.cat(parts)
    if inputs:
        inputs |= {"input_ids": tokens, "attention_mask": positions.long()}
    elif batch[0].source is None:
        inputs = text_inputs(tokens, positions.long())
    else:
        source = torch.stack([prompt.source for prompt in batch if prompt.source is not None])
        inputs |= {"input_ids": source, "decoder_input_ids": tokens}
    return {name: value.to(device) for name, value in inputs.items()}, positions.to(device)
