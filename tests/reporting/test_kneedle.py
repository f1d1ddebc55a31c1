import random

import pytest

from dowser_pl.reporting import knee

# Heights above the chord, (u - 1) + 0.6 d by hand: 0.19, 0.27, 0.14.
BENT = [(0.0, 0.0, 1.0), (0.1, 0.4, 0.95), (0.2, 0.7, 0.85), (0.4, 0.9, 0.6), (1.0, 1.0, 0.4)]


def test_by_hand() -> None:
    assert knee(BENT) == 0.2


def test_cider_beside_accuracy() -> None:
    # 8 (u - 0.8) + 0.4 (d - 2): 1.44 and 2.0
    assert knee([(0, 2.0, 0.8), (0.01, 6.0, 0.78), (0.05, 9.0, 0.7), (0.1, 10.0, 0.4)]) == 0.05


def test_not_the_point_of_the_best_h_score() -> None:
    # 0.9 (u - 1) + 0.1 d: 0.072 and 0.064, though the H-score rises until the end
    assert knee([(0, 0.0, 1.0), (0.01, 0.72, 1.0), (0.05, 0.82, 0.98), (0.1, 0.9, 0.9)]) == 0.01


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(0, 0.0, 1.0)],
        [(0, 0.0, 1.0), (0.1, 1.0, 0.5)],
        [(0, 0.0, 1.0), (0.05, 0.2, 0.5), (0.1, 1.0, 0.4)],  # below
        [(0, 0.0, 0.9), (0.1, 0.1, 0.8), (0.2, 0.2, 0.7), (0.3, 0.3, 0.6)],  # on the chord, but for rounding
        [(0, 0.5, 0.5), (0.05, 0.5, 0.5), (0.1, 0.5, 0.5)],  # nothing moved
        [(0, 0.5, 0.5), (0.05, 0.9, 0.9), (0.1, 0.4, 0.6)],  # nothing learnt, nothing lost
        [(0, 0.5, 0.5), (0.05, 0.1, 0.1), (0.1, 0.4, 0.6)],
        [(0, None, 1.0), (0.05, None, 0.9), (0.1, None, 0.4)],
        [*BENT[:3], (0.4, 0.9, None), BENT[4]],
        [(0, 0.0, None), (0.05, 0.5, None), (0.1, 0.6, None)],
    ],
)
def test_no_knee(points: list[tuple[float, float | None, float | None]]) -> None:
    assert knee(points) is None


def test_of_equally_far_ones_the_smallest_ratio() -> None:
    # (u - 1) + d: 0.25 twice, exactly
    assert knee([(0, 0.0, 1.0), (0.25, 0.25, 1.0), (0.5, 0.75, 0.5), (1, 1.0, 0.0)]) == 0.25


def test_learnt_and_unlearnt_again() -> None:
    # the last point is below the base in both means; -0.1 (u - 1) + 0.8 (d - 0.2): 0.325 and 0.41 to the right
    assert knee([(0, 0.2, 1.0), (0.1, 0.6, 0.95), (0.5, 0.7, 0.9), (1, 0.1, 0.2)]) == 0.5


def path(seed: int) -> list[tuple[float, float, float]]:
    """From (0, 1) to (1, 0), in between anywhere."""
    draw = random.Random(seed)
    inner = [(ratio / 10, draw.random(), draw.random()) for ratio in range(1, draw.randint(2, 9))]
    return [(0.0, 0.0, 1.0), *inner, (1.0, 1.0, 0.0)]


@pytest.mark.parametrize("seed", range(25))
def test_other_units_of_the_axes_change_nothing(seed: int) -> None:
    # On the unit square, height above the chord is how much more than 1 both means are together.
    points = path(seed)
    height, expected = max((down + up, ratio) for ratio, down, up in points[1:-1])
    expected = expected if height > 1 else None
    assert knee(points) == expected
    draw = random.Random(100 + seed)
    for _ in range(10):
        wide, tall = 10 ** draw.uniform(-3, 3), 10 ** draw.uniform(-3, 3)
        right, up = draw.random(), draw.random()
        assert knee([(ratio, wide * (d + right), tall * (u + up)) for ratio, d, u in points]) == expected
