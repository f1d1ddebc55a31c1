"""How likely a model finds given texts: teacher-forced, in batches, nothing is written."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from dowser_pl.distributed import collectives
from dowser_pl.distributed.models import is_sharded_model

__all__ = ["logits_at", "measured_likelihoods", "target_likelihoods"]

_IGNORED = -100


def logits_at(model: torch.nn.Module, inputs: dict[str, Tensor], columns: Tensor) -> Tensor:
    """Logits at some columns alone, where the model can leave the others out: a vocabulary is wide.

    Args:
        model: decoder-only, of transformers.
        inputs: what `forward` takes of B rows of T tokens.
        columns: (C,) int64, 0 to T - 1.

    Returns:
        (B, C, V), in the model's dtype.
    """
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        some: Tensor = model(**inputs, use_cache=False, logits_to_keep=columns).logits
        return some
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[:, columns]


def target_likelihoods(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the targets of each row, and how many there are.

    Args:
        model: image-text-to-text model in eval mode.
        inputs: what `forward` takes of B rows, with `labels` (B, T; -100 = no target, such as the question, the
            tokens of an image, and padding). The first token of a decoder-only model is never a target.

    Returns:
        (B,) float64 nats, each the sum over its row, and (B,) int64 counts.
    """
    given = dict(inputs)
    labels = given.pop("labels")
    if model.config.get_text_config().is_encoder_decoder or model.config.is_encoder_decoder:
        logits = model(**given, labels=labels).logits  # the decoder's input is made of the labels
    else:
        labels = labels[:, 1:]
        columns = (labels != _IGNORED).any(0).nonzero().squeeze(1)
        logits, labels = logits_at(model, given, columns), labels[:, columns]
    is_target = labels != _IGNORED
    losses = cross_entropy(logits[is_target].float(), labels[is_target], reduction="none")
    counts = is_target.sum(1)
    rows = torch.repeat_interleave(torch.arange(len(labels), device=labels.device), counts)
    nats = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
    return nats.index_add_(0, rows, losses.double()), counts


def measured_likelihoods(model: PreTrainedModel, batches: Sequence[dict[str, Any]]) -> tuple[list[float], list[int]]:
    """The same of several batches, of all their rows in order, as plain numbers.

    Processes that hold parts of one model take equally many steps: one with fewer batches repeats its last.

    Args:
        model: in eval mode.
        batches: at least one.
    """
    steps = len(batches)
    if is_sharded_model(model):
        steps = max(collectives.all_gather_numbered(lambda: {collectives.rank(): len(batches)}))
    nats: list[float] = []
    tokens: list[int] = []
    for step in range(steps):
        found, counts = target_likelihoods(model, batches[min(step, len(batches) - 1)])
        if step < len(batches):
            nats += found.tolist()
            tokens += counts.tolist()
    return nats, tokens
