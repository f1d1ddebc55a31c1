"""Which differences between methods are more than chance: paired bootstrap tests of the H-score, Holm-corrected.

All methods answer the same questions with the same seeds, so what is compared is their difference on the same draw:
questions of every task are drawn with replacement, and so are seeds, S - 1 of S, with which the variance of their mean
is that of S seeds without bias (Rao and Wu, 1988. Resampling inference with complex survey data. JASA 83). A draw's
H-score is the mean over its seeds, as in the table. With d_b the difference in draw b of B,

    p = 2 min(1 + #{d_b <= 0}, 1 + #{d_b >= 0}) / (1 + B)        (at most 1)

and of m tests the k-th smallest p is multiplied by m - k + 1, never below the one before (Holm, 1979. A simple
sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6).

Legend: B draws, S seeds, T tasks, Q questions of a task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dowser_pl.errors import DowserError

__all__ = ["Difference", "Outcomes", "against_first", "holm", "p_value", "resampled"]

Floats = NDArray[np.float64]
DRAWS = 4000


@dataclass(frozen=True)
class Outcomes:
    """What one method scored on every question with every seed.

    Attributes:
        upstream: name of a task -> (S, Q).
        downstream: name of a task -> (S, Q).
        tokens: name of a task that is scored by perplexity -> (Q,) tokens of its texts; its numbers above are the nats
            by which each text got likelier than under the base.
    """

    upstream: Mapping[str, Floats]
    downstream: Mapping[str, Floats]
    tokens: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def h_score(self) -> float:
        """The mean over the seeds of the harmonic mean of both roles."""
        means = {}
        for role in ("upstream", "downstream"):
            shares = {
                name: np.full((1, scores.shape[1]), 1 / scores.shape[1]) for name, scores in self.of(role).items()
            }
            means[role] = np.mean([self.scores_of(name, role, share) for name, share in shares.items()], axis=0)
        return float(np.mean(_harmonic(means["upstream"], means["downstream"])))

    def of(self, role: str) -> Mapping[str, Floats]:
        """The tasks of a role."""
        return self.upstream if role == "upstream" else self.downstream

    def scores_of(self, name: str, role: str, shares: Floats) -> Floats:
        """(B, S) scores of a task, on the scale of means and of the H-score.

        Args:
            name: of the task.
            role: of it.
            shares: (B, Q), how much each question counts in a draw; a row has the sum 1.
        """
        drawn: Floats = shares @ self.of(role)[name].T
        if name not in self.tokens:
            return drawn
        gained = drawn / (shares @ self.tokens[name])[:, None]  # base / score = exp(gained), see `comparable`
        return np.minimum(1.0, np.exp(gained)) if role == "upstream" else np.maximum(0.0, 1 - np.exp(-gained))

    @property
    def asked(self) -> dict[str, tuple[int, ...]]:
        """Name of a task -> seeds and questions; methods can be paired where these are equal."""
        return {name: scores.shape for name, scores in {**self.upstream, **self.downstream}.items()}


@dataclass(frozen=True)
class Difference:
    """How far the H-score of a method is from that of the first.

    Attributes:
        value: of the method less that of the first.
        p: two-sided, adjusted for all methods that are compared with the first; None of the first itself.
        interval: ends of the H-score of 95 % of the draws.
    """

    value: float
    p: float | None
    interval: tuple[float, float]


def against_first(methods: Mapping[str, Outcomes]) -> dict[str, Difference]:
    """Compare every method with the first.

    Args:
        methods: name -> outcomes, the first being the one to compare with; those on other questions or with other
            numbers of seeds are left out.
    """
    if not methods:
        return {}
    first, *_ = methods.values()
    paired = {name: each for name, each in methods.items() if each.asked == first.asked}
    drawn = resampled(list(paired.values()))
    adjusted = holm([p_value(draws - drawn[0]) for draws in drawn[1:]])
    return {
        name: Difference(
            each.h_score - first.h_score, p, (float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975)))
        )
        for (name, each), draws, p in zip(paired.items(), drawn, [None, *adjusted], strict=True)
    }


def resampled(methods: Sequence[Outcomes], draws: int = DRAWS, seed: int = 0) -> Floats:
    """The H-score of each method in every draw of questions and seeds; the draws are the same for all.

    Args:
        methods: outcomes on the same questions, with at least one task of both roles.
        draws: how many, B.
        seed: of the draws.

    Returns:
        (M, B).

    Raises:
        DowserError: if they were asked different questions, or have other numbers of seeds.
    """
    asked = methods[0].asked
    if any(each.asked != asked for each in methods):
        raise DowserError("got methods that were asked different questions, expected the same ones to compare them")
    random = np.random.default_rng(seed)
    (seeds,) = {shape[0] for shape in asked.values()}
    drawn = max(seeds - 1, 1)
    of_seeds = random.multinomial(drawn, np.full(seeds, 1 / seeds), size=draws) / drawn
    means = {role: np.zeros((len(methods), draws, seeds)) for role in ("upstream", "downstream")}
    for role, of_methods in means.items():
        names = sorted(getattr(methods[0], role))
        for name in names:
            count = asked[name][1]
            of_questions = random.multinomial(count, np.full(count, 1 / count), size=draws) / count
            for number, each in enumerate(methods):
                of_methods[number] += each.scores_of(name, role, of_questions) / len(names)
    weighted: Floats = (of_seeds * _harmonic(means["upstream"], means["downstream"])).sum(axis=2)
    return weighted


def _harmonic(first: Floats, second: Floats) -> Floats:
    total = first + second
    return np.divide(2 * first * second, total, out=np.zeros_like(total), where=total > 0)


def p_value(differences: Floats) -> float:
    """Two-sided, of a difference whose draws are given; at least 2 / (1 + B).

    Args:
        differences: (B,).
    """
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (1 + len(differences)))


def holm(values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order of those given."""
    adjusted, last = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        last = max(last, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = last
    return adjusted
