"""Upstream scores at equal downstream scores."""

import pytest

from dowser_pl.bench.matched import frontier, matched, upstream_at

CURVE = [(0.5, 0.99), (0.7, 0.95), (0.8, 0.90), (0.78, 0.7), (0.79, 0.6)]


def test_the_frontier_is_what_no_other_setting_beats_in_both():
    assert frontier(CURVE) == [(0.5, 0.99), (0.7, 0.95), (0.8, 0.90)]
    assert frontier([(0.1, 0.2), (0.3, 0.2), (0.3, 0.1)]) == [(0.3, 0.2)]
    for point in CURVE:
        beaten = any(other[0] >= point[0] and other[1] >= point[1] and other != point for other in CURVE)
        assert (point in frontier(CURVE)) != beaten
    assert frontier([]) == []


def test_between_two_settings_the_score_is_interpolated():
    assert upstream_at(CURVE, 0.75) == pytest.approx(0.925)
    assert upstream_at(CURVE, 0.7) == 0.95 and upstream_at(CURVE, 0.8) == pytest.approx(0.90)
    assert upstream_at(CURVE, 0.3) == 0.99, "who learns more with it has it at less"
    assert upstream_at(CURVE, 0.81) is None and upstream_at([], 0.1) is None


def test_the_level_is_what_three_quarters_of_the_methods_reach():
    methods = {"a": CURVE, "b": [(0.9, 0.5)], "c": [(0.755, 0.9), (0.2, 1.0)], "d": [(0.1, 1.0)], "e": []}
    level, found = matched(methods)
    assert level == 0.75
    assert found == {"a": pytest.approx(0.925), "b": 0.5, "c": pytest.approx(0.901, abs=1e-3), "d": None}
    assert matched({"a": CURVE, "e": []}) is None
