"""What the estimators estimate: sensitivities from the exact Jacobian, one backward pass per logit.

Two scores, both times |W_ij| and averaged over prompts: `paper` is (root mean square over positions of ||J_ti||)
times (mean over positions of |h_tj|), `weight` is the norm over logits of the derivative by the entry itself.

Legend: B prompts of a batch, T positions, V vocabulary, O outputs, I inputs of a matrix.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dowser_pl.importance import Prompt

__all__ = ["TRUTHS", "Truth", "exact_scores"]

TRUTHS = ("paper", "weight")
Truth = dict[str, dict[str, Tensor]]
"""Truth -> matrix -> (O, I) scores."""


def exact_scores(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    prompts: Sequence[Prompt],
    text_inputs: Callable[[Tensor, Tensor], dict[str, Tensor]],
    batch_size: int = 16,
) -> Truth:
    """Both scores of every matrix, at the last position of text-only prompts.

    Args:
        model: runs the prompts; its weights must take gradients, though none is computed.
        layers: run-time name -> matrix.
        prompts: without images.
        text_inputs: what the model takes for tokens and their mask.
        batch_size: prompts at a time; each costs a float32 (O, I) buffer per matrix.
    """
    totals = {truth: {name: torch.zeros_like(layer.weight) for name, layer in layers.items()} for truth in TRUTHS}
    by_length = sorted(prompts, key=lambda prompt: len(prompt.tokens))  # little padding
    for first in range(0, len(by_length), batch_size):
        batch = by_length[first : first + batch_size]
        for truth, scores in _exact_sums(model, layers, batch, text_inputs).items():
            for name, total in scores.items():
                totals[truth][name] += total
    with torch.no_grad():
        for scores in totals.values():
            for name, total in scores.items():
                total.mul_(layers[name].weight.abs() / len(prompts))
    return totals


def _exact_sums(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    batch: Sequence[Prompt],
    text_inputs: Callable[[Tensor, Tensor], dict[str, Tensor]],
) -> Truth:
    """Sums over the prompts of a batch, without |W|."""
    tokens, positions = _pad(batch)
    logits, inputs, outputs = _run(model, layers, text_inputs(tokens, positions.long()))
    last = logits[torch.arange(len(batch)), positions.sum(dim=1) - 1]
    share = (positions / positions.sum(dim=1, keepdim=True))[..., None]  # (B, T, 1), sums to one
    columns = {name: outputs[name].new_zeros(len(batch), layer.out_features) for name, layer in layers.items()}
    entries = {name: outputs[name].new_zeros(len(batch), *layer.weight.shape) for name, layer in layers.items()}
    for logit in last.unbind(dim=1):  # rows do not influence each other, so the gradient of the sum splits by row
        gradients = torch.autograd.grad(logit.sum(), list(outputs.values()), retain_graph=True)
        for name, gradient in zip(outputs, gradients, strict=True):
            columns[name] += (gradient.square() * share).sum(dim=1)
            derivative = gradient.mT @ inputs[name]  # padding comes last: its gradients are zero
            entries[name].addcmul_(derivative, derivative)
    activation = {name: (inputs[name].abs() * share).sum(dim=1) for name in layers}
    return {
        "paper": {name: columns[name].sqrt().T @ activation[name] for name in layers},
        "weight": {name: entries[name].sqrt_().sum(dim=0) for name in layers},
    }


def _run(
    model: nn.Module, layers: Mapping[str, nn.Linear], model_inputs: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """(B, T, V) logits with their graph, and by matrix its (B, T, I) inputs and (B, T, O) outputs."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
            inputs[name], outputs[name] = arguments[0].detach(), output

        return keep

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        logits = model(**model_inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, inputs, outputs


def _pad(batch: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """(B, T) tokens, padded on the right, and the mask of real positions."""
    tokens = nn.utils.rnn.pad_sequence([prompt.tokens for prompt in batch], batch_first=True)
    lengths = torch.tensor([len(prompt.tokens) for prompt in batch])
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]
