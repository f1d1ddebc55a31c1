"""Tests of differences between methods: against exact values, and how often nothing is taken for something."""

import numpy as np
import pytest

from dowser_pl.bench.paired import Outcomes, holm, p_value, resampled
from dowser_pl.errors import DowserError
from dowser_pl.reporting import comparable


def outcomes(rng, upstream, downstream, seeds=3, questions=40, spread=0.0):
    """Answers that are right with these probabilities, which differ from seed to seed."""
    ups, downs = {}, {}
    for number in range(2):
        chance = np.clip(upstream + spread * rng.standard_normal((seeds, 1)), 0, 1)
        ups[f"up {number}"] = (rng.random((seeds, questions)) < chance).astype(float)
    chance = np.clip(downstream + spread * rng.standard_normal((seeds, 1)), 0, 1)
    downs["down"] = (rng.random((seeds, questions)) < chance).astype(float)
    return Outcomes(ups, downs)


def h_of(each):
    upstream = np.mean([scores.mean(axis=1) for scores in each.upstream.values()], axis=0)
    downstream = each.downstream["down"].mean(axis=1)
    return (2 * upstream * downstream / (upstream + downstream)).mean()


def test_draws_scatter_around_the_score_by_what_questions_and_seeds_vary():
    rng = np.random.default_rng(0)
    each = outcomes(rng, 0.9, 0.6, questions=300, spread=0.1)
    drawn = resampled([each], 4000)[0]
    assert drawn.mean() == pytest.approx(h_of(each), abs=0.003)
    # the seeds alone: with questions that all say the same, the variance is that of a mean of three, unbiased
    alike = Outcomes({"up": np.full((3, 5), 0.8)}, {"down": np.repeat(np.array([[0.3], [0.5], [0.7]]), 5, axis=1)})
    h = 2 * 0.8 * np.array([0.3, 0.5, 0.7]) / (0.8 + np.array([0.3, 0.5, 0.7]))
    assert resampled([alike], 10_000)[0].std() == pytest.approx(h.std(ddof=1) / np.sqrt(3), rel=0.03)


def test_questions_alone_vary_as_binomial_scores_do():
    one = Outcomes({"up": np.ones((1, 50))}, {"down": np.array([[1.0] * 30 + [0.0] * 20])})
    shares = np.random.default_rng(3).binomial(50, 0.6, 50_000) / 50
    expected = 2 * shares / (1 + shares)
    drawn = resampled([one], 10_000)[0]
    assert drawn.mean() == pytest.approx(expected.mean(), abs=4e-3)
    assert drawn.std() == pytest.approx(expected.std(), rel=0.04)


def test_a_perplexity_counts_by_its_ratio_to_that_of_the_base_over_all_tokens_of_a_draw():
    """By hand: nats of base and tuned model, summed over the questions that are drawn."""
    rng = np.random.default_rng(4)
    tokens, base = np.array([3.0, 8.0, 20.0]), np.array([4.0, 9.0, 31.0])
    after = {"up": base + [[2.0, -0.5, 8.0]], "down": base - [[2.0, 1.0, 9.0]]}
    each = Outcomes({"up": base - after["up"]}, {"down": base - after["down"]}, {"up": tokens, "down": tokens})
    shares = rng.multinomial(3, np.full(3, 1 / 3), size=50) / 3
    for name, counts in {"drawn": shares, "all": np.full((1, 3), 1 / 3)}.items():
        first = np.exp(counts @ base / (counts @ tokens))
        up, down = (np.exp(counts @ after[role][0] / (counts @ tokens)) for role in ("up", "down"))
        found = [each.scores_of(role, f"{role}stream", counts)[:, 0] for role in ("up", "down")]
        np.testing.assert_allclose(found[0], np.minimum(1, first / up), err_msg=name)
        np.testing.assert_allclose(found[1], np.maximum(0, 1 - down / first), err_msg=name)
    upstream, downstream = (
        comparable("perplexity", *of) for of in (("upstream", first[0], up[0]), ("downstream", first[0], down[0]))
    )
    assert each.h_score == pytest.approx(2 * upstream * downstream / (upstream + downstream))
    likelier = Outcomes({"up": np.full((1, 3), 2.0)}, {"down": np.ones((1, 3))}, {"up": tokens})
    assert likelier.h_score == 1.0  # upstream it counts for nothing


def test_the_same_answers_differ_by_nothing_and_draws_are_the_same_every_time():
    each = outcomes(np.random.default_rng(1), 0.9, 0.8)
    first, second = resampled([each, each])
    assert np.array_equal(first, second) and np.array_equal(resampled([each])[0], first)
    assert p_value(first - second) == 1.0
    nothing = Outcomes({"up": np.zeros((2, 4))}, {"down": np.zeros((2, 4))})
    assert np.array_equal(resampled([nothing]), np.zeros((1, 4000)))
    with pytest.raises(DowserError, match="different questions"):
        resampled([each, nothing])


def test_no_difference_is_found_about_as_rarely_as_asked_for_and_a_large_one_always():
    """Two methods of one skill, on the same questions of differing difficulty, each with its own seeds' luck."""
    rng, found = np.random.default_rng(2), 0
    rounds = 100
    for _ in range(rounds):
        one, other = (outcomes(rng, 0.9, 0.7, spread=0.03) for _ in range(2))
        first, second = resampled([one, other], 400)
        found += p_value(first - second) < 0.05
    assert found / rounds < 0.15  # three seeds know little of their own spread
    better, worse = outcomes(rng, 0.97, 0.9, questions=300), outcomes(rng, 0.97, 0.75, questions=300)
    first, second = resampled([better, worse])
    assert p_value(first - second) == pytest.approx(2 / 4001)


def test_p_values_by_hand():
    assert p_value(np.array([1.0, 2.0, 3.0])) == 0.5
    assert p_value(np.array([1.0, -1.0, 0.0])) == 1.0
    assert p_value(np.array([-1.0] * 99)) == 0.02


def test_holm_by_hand_and_against_its_definition():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
    values = [0.004, 0.2, 0.011, 0.03]
    ranked = sorted(values)
    for level in (0.01, 0.03, 0.05, 0.1, 0.3, 0.9):
        kept = [value > level / (4 - rank) for rank, value in enumerate(ranked)] + [True]
        assert sorted(holm(values)) == holm(ranked)
        assert sum(value <= level for value in holm(values)) == kept.index(True)
