r"""Metrics of what a model finds likely, not of what it writes: it is given texts and asked how probable they are.

A text of T tokens, the end of the turn that the chat template writes among them, has the negative log-likelihood

$$ \ell = -\sum_{t=1}^{T} \log p(x_t \mid \text{question}, x_{<t}) \quad\text{nats.} $$

`perplexity` is $\exp(\sum \ell / \sum T)$ over all texts of a task: lower is better, 1 the least. (Perplexity, a
measure of the difficulty of speech recognition tasks. Jelinek, Mercer, Bahl, Baker, 1977. Journal of the Acoustical
Society of America 62.) In means and in the H-score it counts as `dowser_pl.reporting.comparable` says.

`choice_likelihood` takes the option with the lowest $\ell$ for the answer, or with `per_token: true` the one with the
lowest $\ell / T$, the first of equal ones, and is the share of right ones. (Language Models are Few-Shot Learners.
Brown et al., 2020. arXiv:2005.14165, section 2.4, which normalises by tokens.) Difference: there an option is a text
that is continued; here it is a whole turn with its end, so that "red" is no likelier than "red panda" merely because it
stops earlier.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from dowser_pl.errors import DowserError
from dowser_pl.metrics.answers import BILLION, AnswerMetric, check_rows

_MEASURED = re.compile(r"(\d+\.\d+) nats over (\d+) tokens")
_MOST_NATS = 50.0  # of a mean; above it a model is broken, and its perplexity of 5e21 still a finite number


class LikelihoodMetric(ABC):
    """A metric whose predictions are made of likelihoods: the model is not asked to write anything."""

    @abstractmethod
    def prediction(self, candidates: Sequence[str], nats: Sequence[float], tokens: Sequence[int]) -> str:
        """What stands for the answer to one question.

        Args:
            candidates: texts that were measured.
            nats: negative log-likelihood of each, summed over its tokens.
            tokens: how many each has.
        """


class Perplexity(Metric, LikelihoodMetric):
    """exp of the mean negative log-likelihood over all tokens of all references; lower is better.

    Sums are kept in whole billionths, as in `AnswerMetric`. A mean above 50 nats counts as 50.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def prediction(self, candidates: Sequence[str], nats: Sequence[float], tokens: Sequence[int]) -> str:  # noqa: ARG002
        """The sums of a question: `12.345678901 nats over 5 tokens`."""
        return f"{math.fsum(nats):.9f} nats over {sum(tokens)} tokens"

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add what `prediction` said of questions; an empty one, of a question that nobody has asked yet, adds nothing.

        Raises:
            DowserError: lengths differ, a row has no reference, or a prediction is a text that a model wrote.
        """
        check_rows("Perplexity", predictions, references)
        measured = [_MEASURED.fullmatch(said) for said in predictions if said]
        if None in measured:
            raise DowserError(
                f"Perplexity: got the prediction {next(said for said in predictions if said)!r:.60}, expected what was "
                "measured, as '12.5 nats over 4 tokens'. A module or data module of your own asks for it by "
                "`candidates` of its questions (dowser_pl.data.Question)"
            )
        self.total += sum(round(float(each[1]) * BILLION) for each in measured if each)
        self.count += sum(int(each[2]) for each in measured if each)

    def compute(self) -> Tensor:
        """The perplexity of all rows of all ranks, a float64 scalar of at least 1.

        Raises:
            DowserError: no token was measured on any rank.
        """
        count = int(self.count)
        if count == 0:
            raise DowserError("Perplexity: no token was measured, so there is no mean. Call update().")
        mean = int(self.total) / (count * BILLION)
        return torch.tensor(math.exp(min(mean, _MOST_NATS)), dtype=torch.float64, device=self.count.device)


class ChoiceLikelihood(AnswerMetric, LikelihoodMetric):
    """Share of questions whose likeliest option is the right one."""

    per_token = False

    def prediction(self, candidates: Sequence[str], nats: Sequence[float], tokens: Sequence[int]) -> str:
        """The likeliest option, the first of equal ones."""
        surprises = [each / count if self.per_token else each for each, count in zip(nats, tokens, strict=True)]
        return candidates[min(range(len(candidates)), key=surprises.__getitem__)]

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if it is the right option, letter by letter, else 0."""
        return float(prediction in references)


class ChoiceLikelihoodPerToken(ChoiceLikelihood):
    """The same by the mean over tokens: `choice_likelihood: {per_token: true}`."""

    per_token = True
