"""How far a model's next-token distributions are from those of its base: KL divergence and top-1 agreement.

With p the base's distribution at a position and q the current one, both over V outcomes,

    KL(p || q) = sum_j p_j (log p_j - log q_j),      d KL / d z_j = q_j - p_j

where z are the current logits (Kullback and Leibler, 1951; as a loss that keeps old outputs: arXiv 1606.09282). Where
only the k largest p_j are known, all others count as one more outcome of probability r: the divergence is then that
of these k + 1 outcomes, at most the full one and equal to it at k = V. It is also the full one against the
distribution that has p_j at the k and r q_j / sum of q over the rest elsewhere, so both share one formula.

Legend: N positions, V vocabulary, k outcomes that are kept.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["TopOutcomes", "agreement", "kl_divergence", "top_outcomes"]

_CHUNK = 2**23  # log-probabilities at a time: 32 MiB of float32


class TopOutcomes(NamedTuple):
    """The likeliest outcomes of N positions, and what is left for all others.

    Attributes:
        log_probs: (N, k) float32, falling.
        indices: (N, k) int64 outcomes.
        rest: (N,) float32 log of the probability of all others together; -inf where there is none.
    """

    log_probs: Tensor
    indices: Tensor
    rest: Tensor


def top_outcomes(logits: Tensor, k: int) -> TopOutcomes:
    """Keep the k likeliest outcomes of each position.

    Args:
        logits: (N, V).
        k: how many; all of them where there are fewer.
    """
    found = [_top(logits[part], min(k, logits.shape[-1])) for part in _chunks(logits)]
    return TopOutcomes(*(torch.cat(each) for each in zip(*found, strict=True)))


def kl_divergence(base: Tensor | TopOutcomes, current: Tensor) -> Tensor:
    """KL(base || current) of every position; differentiable once, in `current` alone.

    It works through the positions in chunks, forward and backward, so that beside the logits no more than a chunk of
    float32 log-probabilities exists. What is inf times a probability of 0 counts as 0.

    Args:
        base: (N, V) logits of the base, or its top outcomes.
        current: (N, V) logits, whose gradient has their dtype.

    Returns:
        (N,) in nats, float32; float64 where `current` is.
    """
    parts = (base,) if isinstance(base, Tensor) else tuple(base)
    divergence: Tensor = _Divergence.apply(current, *parts)
    return divergence


def agreement(base: Tensor | TopOutcomes, current: Tensor) -> Tensor:
    """(N,) bool: whether the base's likeliest outcome is the current one's too, a tie there being no disagreement.

    Args:
        base: (N, V) logits of the base, or its top outcomes.
        current: (N, V) logits.
    """
    first = base.argmax(dim=-1, keepdim=True) if isinstance(base, Tensor) else base.indices[:, :1]
    return current.gather(1, first)[:, 0] == current.amax(dim=-1)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: Tensor, *base: Tensor) -> Tensor:
        ctx.save_for_backward(current, *base)
        divergence = torch.zeros(len(current), dtype=_precise(current), device=current.device)
        for part in _chunks(current):
            log_q = _log_probs(current[part])
            log_t = _target([each[part] for each in base], log_q)
            # an outcome of probability 0 adds nothing, though its logarithm is -inf
            divergence[part] = torch.where(log_t > -torch.inf, log_t.exp() * (log_t - log_q), 0.0).sum(dim=-1)
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        current, *base = ctx.saved_tensors
        gradient = torch.empty_like(current)
        for part in _chunks(current):
            log_q = _log_probs(current[part])
            log_t = _target([each[part] for each in base], log_q)
            # multiplied before it is rounded: a scaled gradient keeps in float16 what the plain one would lose
            gradient[part] = ((log_q.exp() - log_t.exp()) * gradients[0][part, None]).to(gradient.dtype)
        return gradient, *(None for _ in base)


def _target(base: list[Tensor], log_q: Tensor) -> Tensor:
    """(n, V) log of the distribution that `log_q` is compared with."""
    if len(base) == 1:
        return _log_probs(base[0]).to(log_q.dtype)
    log_probs, indices, rest = base
    scale = rest.to(log_q.dtype) - _others(log_q, indices)
    return (log_q + scale[:, None]).scatter(1, indices, log_probs.to(log_q.dtype))


def _top(logits: Tensor, k: int) -> TopOutcomes:
    log_probs = _log_probs(logits)
    values, indices = log_probs.topk(k, dim=-1)
    return TopOutcomes(values, indices, _others(log_probs, indices))


def _others(log_probs: Tensor, indices: Tensor) -> Tensor:
    """(n,) log of the probability of all outcomes but those."""
    return log_probs.scatter(1, indices, -torch.inf).logsumexp(dim=-1)


def _log_probs(logits: Tensor) -> Tensor:
    return logits.to(_precise(logits)).log_softmax(dim=-1)


def _precise(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _chunks(logits: Tensor) -> Iterator[slice]:
    step = max(1, _CHUNK // logits.shape[-1])
    return (slice(start, start + step) for start in range(0, max(len(logits), 1), step))
