import math

import pytest

from dowser_pl.reporting import h_score


def test_harmonic_mean() -> None:
    assert h_score(0.5, 0.5) == pytest.approx(0.5)
    assert h_score(1.0, 0.5) == pytest.approx(2 / 3)
    assert h_score(0.711, 0.562) == pytest.approx(2 * 0.711 * 0.562 / (0.711 + 0.562))


@pytest.mark.parametrize(("upstream", "downstream"), [(0, 1), (1, 0), (0, 0)])
def test_zero_if_either_is_zero(upstream: float, downstream: float) -> None:
    assert h_score(upstream, downstream) == 0


def test_tiny_scores_do_not_underflow() -> None:
    assert h_score(1e-200, 1e-200) == pytest.approx(1e-200)


@pytest.mark.parametrize("score", [-0.1, math.nan, math.inf])
def test_impossible_scores(score: float) -> None:
    with pytest.raises(ValueError, match="downstream"):
        h_score(0.5, score)
