"""Differences between two models on the same questions, against bootstraps that draw question by question."""

import numpy as np
import pytest

from dowser_pl.bench.differences import differences, drawn_means
from dowser_pl.reporting import Counts, Report, Seconds, TaskScore


def test_draws_are_those_of_a_bootstrap_of_questions():
    changes = np.repeat([-1.0, -0.3, 0.0, 0.6, 1.0], [8, 3, 60, 4, 25])
    drawn = drawn_means(changes, draws=20_000)
    random = np.random.default_rng(1)
    oracle = changes[random.integers(len(changes), size=(20_000, len(changes)))].mean(axis=1)
    assert drawn.shape == (20_000,)
    assert drawn.mean() == pytest.approx(changes.mean(), abs=2e-3)
    assert drawn.std() == pytest.approx(changes.std() / 10, rel=0.03)
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx(np.quantile(oracle, [0.025, 0.975]), abs=5e-3)


def test_many_different_changes_are_drawn_in_parts(monkeypatch):
    changes = np.linspace(0, 1, 50)
    monkeypatch.setattr("dowser_pl.bench.differences._AT_ONCE", 120)
    drawn = drawn_means(changes, draws=501)
    assert drawn.shape == (501,) and drawn.mean() == pytest.approx(0.5, abs=0.01)


def rows(task, before, after):
    return [{"task": task, "before_score": one, "after_score": other} for one, other in zip(before, after, strict=True)]


def test_a_difference_that_is_more_than_chance_and_one_that_is_not():
    asked = rows("a", [0.0] * 40, [1.0] * 20 + [0.0] * 20) + rows("b", [1.0, 0.0] * 20, [0.0, 1.0] * 20)
    scores = {"a": TaskScore("upstream", "vqa", 0.0, 0.5), "b": TaskScore("upstream", "vqa", 0.5, 0.5)}
    report = Report("evaluate", None, 0, scores, Counts(0, 0), Counts(0, 0), Seconds(0, 0, 0), None, {})
    found = differences(report, asked)
    assert set(found) == {"a", "b", "upstream mean"}
    assert found["a"].value == 0.5 and found["a"].p < 0.001 and 0.3 < found["a"].low < 0.5 < found["a"].high < 0.7
    assert found["b"].value == 0.0 and found["b"].p > 0.5 and found["b"].low < 0 < found["b"].high
    mean = found["upstream mean"]
    assert mean.value == 0.25 and mean.low < 0.25 < mean.high
    widths = [found[name].high - found[name].low for name in "ab"]
    assert mean.high - mean.low == pytest.approx(np.hypot(*widths) / 2, rel=0.1)  # of independent tasks


def test_what_single_questions_do_not_lead_to_is_left_out():
    scores = {
        "whole": TaskScore("upstream", "bleu4", 0.2, 0.3),
        "known": TaskScore("downstream", "vqa", 0.0, 1.0),
        "texts": TaskScore("upstream", "perplexity", 2.0, 3.0),
    }
    report = Report("evaluate", None, 0, scores, Counts(0, 0), Counts(0, 0), Seconds(0, 0, 0), None, {})
    asked = rows("whole", [0.0, 1.0], [0.0, 1.0]) + rows("known", [0.0, 0.0], [1.0, 1.0]) + rows("texts", [2.0], [3.0])
    assert set(differences(report, asked)) == {"known", "downstream mean"}
