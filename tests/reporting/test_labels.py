import math
import random
from itertools import combinations

from dowser_pl.reporting.plots.labels import spread_out


def test_circles_that_do_not_touch_stay() -> None:
    places = [(0.0, 0.0), (20.0, 0.0), (0.0, 30.0)]
    assert spread_out(places, 17.5) == places


def test_circles_in_one_place_do_not_cover_each_other() -> None:
    for places in ([(5.0, 5.0)] * 16, [(random.Random(0).random() * 30, 0.0) for _ in range(16)]):
        found = spread_out(places, 17.5)
        assert found[0] == places[0]
        assert all(math.dist(one, other) >= 17.5 - 1e-9 for one, other in combinations(found, 2))
        assert max(math.dist(own, place) for own, place in zip(places, found, strict=True)) < 17.5 * 4


def test_none() -> None:
    assert spread_out([], 10) == []
