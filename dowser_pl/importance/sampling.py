"""Sampling from explicit random streams inside Hugging Face's ``generate``.

``generate`` draws from the global random state. Here one uniform number per prompt and position, drawn in
advance from the prompt's own stream, picks the token by inverting the cumulative distribution; ``generate``
then runs greedily. The result depends on the prompt alone, not on its batch.

Legend: B prompts, V vocabulary, T new positions.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from dowser_pl.importance.settings import Probe

__all__ = ["SampleFromStreams"]


class SampleFromStreams(LogitsProcessor):
    """Turns logits into one-hot choices: a forced prefix first, then samples.

    Args:
        start: positions that stand before the first new token.
        forced: (B, P) int64 tokens to write first; -1 = sample this one.
        uniforms: (B, T) float32 in [0, 1), one per new position.
        blocked: ids that are never written (special tokens other than the end of text).
        settings: temperature, top_p, repetition penalty.
    """

    def __init__(self, start: int, forced: Tensor, uniforms: Tensor, blocked: list[int], settings: Probe) -> None:
        self.start = start
        self.forced = forced
        self.uniforms = uniforms
        self.blocked = blocked
        self.warpers = [
            RepetitionPenaltyLogitsProcessor(settings.repetition_penalty),
            TemperatureLogitsWarper(settings.temperature),
            TopPLogitsWarper(settings.top_p),
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) logits -> (B, V) with 0 at the chosen token and -inf elsewhere."""
        step = input_ids.shape[1] - self.start
        choice = self._sample(input_ids, scores.float().clone(), step)
        if step < self.forced.shape[1]:
            forced = self.forced[:, step].to(choice.device)
            choice = torch.where(forced >= 0, forced, choice)
        return torch.full_like(scores, float("-inf")).scatter_(1, choice[:, None], 0.0)

    def _sample(self, input_ids: Tensor, scores: Tensor, step: int) -> Tensor:
        blocked = [index for index in self.blocked if index < scores.shape[1]]
        scores[:, blocked] = float("-inf")
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        cumulative = scores.softmax(dim=-1).cumsum(dim=-1)
        point = self.uniforms[:, step, None].to(cumulative) * cumulative[:, -1:]
        # right=True never lands on an entry of probability zero
        choice = torch.searchsorted(cumulative, point, right=True).flatten()
        return choice.clamp_(max=scores.shape[1] - 1)
