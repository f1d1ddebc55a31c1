"""The importance pass: one forward per batch of prompts, then one backward per Rademacher probe.

Hutchinson: for xi in {-1, +1}^V, E[(d(xi . f) / dz_i)^2] = ||J_i||^2 with f the logits at the last position
(arXiv 2602.04509, section 3). The graph is kept for all probes of a batch; weights take no gradient, so a
backward costs half of a training backward and no weight-sized memory.

Legend: N prompts, B prompts of a batch, T positions, V vocabulary, R probes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dowser_pl.maths.streams import stream
from dowser_pl.probing.factors import Factors, LayerFactors
from dowser_pl.probing.prompts import Prompt, TextInputs, plain_text
from dowser_pl.probing.recorder import Recorder
from dowser_pl.probing.settings import Probe

__all__ = ["measure", "probing_mode"]


def measure(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    prompts: Iterable[list[Prompt]],
    settings: Probe,
    on_batch: Callable[[int], None] = lambda _: None,
    text_inputs: TextInputs = plain_text,
) -> Factors:
    """Measure the factors of every layer.

    Args:
        model: runs the prompts; in :func:`probing_mode`.
        layers: run-time name -> linear module; every one must lie on the way from the embeddings to the logits.
        prompts: batches of prompts, in order.
        settings: number of probes and seed.
        on_batch: told the number of prompts done, for a progress bar.
        text_inputs: what the model takes for tokens and their mask, where that is more than the two.

    Returns:
        The factors, on the CPU in float32.

    Raises:
        ValueError: if a layer is not reached, or a factor is not finite.
    """
    rows: dict[str, list[LayerFactors]] = {name: [] for name in layers}
    done = 0
    recorder = Recorder(layers)
    for batch in prompts:
        inputs, positions = _stack(batch, next(model.parameters()).device, text_inputs)
        with recorder:  # not while the model writes the next prompts
            recorder.start(positions)
            logits = _last_logits(model(**inputs, use_cache=False).logits, positions)
            _backward(logits, done, settings)
        recorder.check_complete()
        for name in layers:
            rows[name].append(
                LayerFactors(
                    recorder.activation[name].cpu(),
                    recorder.abs_gradient[name].cpu() / settings.num_probes,
                    recorder.square_gradient[name].cpu() / settings.num_probes,
                )
            )
        done += len(batch)
        on_batch(len(batch))
    return Factors({name: LayerFactors.concatenate(parts) for name, parts in rows.items()}).checked()


@contextmanager
def probing_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, frozen weights, and embedding outputs as the root of the graph; all undone on exit."""
    training = [module for module in model.modules() if module.training]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)

    def make_root(module: nn.Module, inputs: object, output: Tensor) -> Tensor:  # noqa: ARG001
        return output.requires_grad_(True) if torch.is_grad_enabled() else output

    # encoder and decoder of T5 have an embedding module each, over one shared weight
    shared = model.get_input_embeddings().weight  # type: ignore[operator]
    tables = [module for module in model.modules() if getattr(module, "weight", None) is shared]
    handles = [
        table.register_forward_hook(make_root)
        for table in tables
        if table is not model.get_output_embeddings()  # type: ignore[operator]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def _backward(logits: Tensor, first: int, settings: Probe) -> None:
    """R backward passes over one graph; the recorder's hooks see the output gradients on the way."""
    num_rows, vocabulary = logits.shape
    signs = torch.stack(
        [
            torch.randint(0, 2, (settings.num_probes, vocabulary), generator=stream(settings.seed, "probe", index))
            for index in range(first, first + num_rows)
        ]
    )
    signs = (2 * signs - 1).to(logits)
    for probe in range(settings.num_probes):
        last = probe == settings.num_probes - 1
        # one scalar for the whole batch: rows do not influence each other, so its gradient splits by row
        (signs[:, probe] * logits).sum().backward(retain_graph=not last)


def _last_logits(logits: Tensor, positions: Tensor) -> Tensor:
    """(B, T, V) -> (B, V) float32 at the last real position of each row."""
    last = positions.sum(dim=1) - 1
    return logits[torch.arange(len(logits), device=logits.device), last].float()


def _stack(batch: list[Prompt], device: torch.device, text_inputs: TextInputs) -> tuple[dict[str, Tensor], Tensor]:
    """Right-padded model inputs, and the (B, T) mask of real positions."""
    lengths = torch.tensor([len(prompt.tokens) for prompt in batch])
    longest = int(lengths.max())
    tokens = torch.zeros(len(batch), longest, dtype=torch.int64)
    for row, prompt in enumerate(batch):
        tokens[row, : len(prompt.tokens)] = prompt.tokens
    positions = torch.arange(longest) < lengths[:, None]
    inputs: dict[str, Tensor] = {}
    for name in batch[0].image:
        parts = [prompt.image[name] for prompt in batch]
        if name.endswith("token_type_ids"):  # one entry per token: text that was written later is type 0
            parts = [nn.functional.pad(part, (0, longest - part.shape[-1])) for part in parts]
        inputs[name] = torch.cat(parts)
    if inputs:
        inputs |= {"input_ids": tokens, "attention_mask": positions.long()}
    elif batch[0].source is None:
        inputs = text_inputs(tokens, positions.long())
    else:
        source = torch.stack([prompt.source for prompt in batch if prompt.source is not None])
        inputs |= {"input_ids": source, "decoder_input_ids": tokens}
    return {name: value.to(device) for name, value in inputs.items()}, positions.to(device)
