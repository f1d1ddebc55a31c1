import math
import random
from fractions import Fraction
from statistics import fmean

import pytest

from dowser_pl.reporting import Questions, TaskScore
from dowser_pl.reporting.intervals import Interval, change_interval, mean_interval, score_interval
from tests.reporting.samples import report


def by_trial(right: int, asked: int) -> tuple[float, float]:
    """Wilson's interval as it is defined: all shares that are less than 1.96 of their own deviations away."""
    seen, near = right / asked, []
    for step in range(20001):
        share = step / 20000
        if abs(seen - share) <= 1.959964 * math.sqrt(share * (1 - share) / asked) + 1e-12:
            near.append(share)
    return min(near), max(near)


@pytest.mark.parametrize(("right", "asked"), [(0, 20), (20, 20), (13, 20), (1, 7), (900, 1000)])
def test_a_score_has_the_shares_that_it_does_not_contradict(right: int, asked: int) -> None:
    assert score_interval(right / asked, asked) == pytest.approx(by_trial(right, asked), abs=1e-4)


def test_of_a_hundred_evaluation_sets_ninety_five_have_the_truth() -> None:
    """Coverage where answers are right or wrong, of a change too."""
    rng, held, of_change, sets = random.Random(0), 0, 0, 2000
    for _ in range(sets):
        pairs = [rng.choices([(1, 1), (1, 0), (0, 1), (0, 0)], [0.6, 0.2, 0.1, 0.1])[0] for _ in range(60)]
        before, change = fmean(first for first, _ in pairs), fmean(last - first for first, last in pairs)
        low, high = score_interval(before, 60)
        held += low <= 0.8 <= high
        low, high = change_interval(change, fmean((last - first) ** 2 for first, last in pairs), 60)
        of_change += low <= -0.1 <= high
    assert 0.93 < held / sets < 0.97
    assert 0.93 < of_change / sets < 0.975


def test_a_change_counts_two_more_questions() -> None:
    """By hand: of ten questions three gained and one forgotten; with half of each more 3.5 and 1.5 of twelve."""
    mean, square = Fraction(2, 12), Fraction(5, 12)
    half = 1.959964 * math.sqrt((square - mean**2) / 12)
    assert change_interval(0.2, 0.4, 10) == pytest.approx((float(mean) - half, float(mean) + half))


def test_no_change_at_all_is_not_certain() -> None:
    low, high = change_interval(0.0, 0.0, 50)
    assert -0.06 < low < 0 < high < 0.06
    low, high = change_interval(1.0, 1.0, 50)
    assert 0.8 < low < 1 and high == 1


def test_scores_above_one() -> None:
    """CIDEr: none of a score by itself; of a change the plain one."""
    assert score_interval(1.2, 100) is None
    assert change_interval(0.5, 0.5, 25, wide=True) == pytest.approx((0.304, 0.696), abs=1e-3)
    assert change_interval(0.5, 0.5, 1, wide=True) is None


def test_nothing_was_asked() -> None:
    assert score_interval(0.5, 0) is None and change_interval(0.0, 0.0, 0) is None
    assert mean_interval([], []) is None


def test_the_mean_of_tasks_is_surer_than_each() -> None:
    one = score_interval(0.5, 100)
    low, high = mean_interval([0.5] * 4, [one] * 4)
    assert high - 0.5 == pytest.approx((one.high - 0.5) / 2) and 0.5 - low == pytest.approx((0.5 - one.low) / 2)
    assert mean_interval([0.5, 0.5], [one, None]) is None


def test_of_a_report() -> None:
    asked = {name: Questions(50, 1, 5, 0.2) for name in report().tasks}
    run = report(questions=asked)
    assert run.interval("colour", "after") == score_interval(0.75, 50)
    assert run.interval("colour", "change") == change_interval(-0.25, 0.2, 50)
    both = [run.interval(name, "after") for name in ("colour", "ocr")]
    assert run.role_interval("upstream", "after") == mean_interval([0.75, 0.25], both)
    assert report().interval("colour", "after") is None and report().role_interval("upstream", "change") is None
    unpaired = report(questions={"colour": Questions(50)})
    assert isinstance(unpaired.interval("colour", "before"), Interval) and unpaired.interval("colour", "change") is None


def test_of_a_captioning_task() -> None:
    run = report(
        tasks={"captions": TaskScore("upstream", "cider", 0.9, 1.1)}, questions={"captions": Questions(9, 5, 4, 0.5)}
    )
    assert run.interval("captions", "before") is None and run.interval("captions", "after") is None
    assert run.interval("captions", "change") is not None
