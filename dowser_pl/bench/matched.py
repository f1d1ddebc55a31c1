"""What methods keep when they have learnt equally much: upstream scores at one downstream score.

An H-score mixes how much a method learns with how much it forgets, and so does the learning rate that is best by it.
Of all settings (D, U) that a method tried, those that no other beats in both are its frontier; between neighbours
(D1, U1) and (D2, U2) of it, a score D in between is taken to be had at

    U = U1 + (U2 - U1) (D - D1) / (D2 - D1).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

__all__ = ["frontier", "matched", "upstream_at"]

Point = tuple[float, float]
_SHARE = 0.75  # of the methods that reach the level at which they are compared


def frontier(points: Sequence[Point]) -> list[Point]:
    """The (downstream, upstream) points that no other beats in both, downstream rising and upstream falling."""
    kept: list[Point] = []
    for point in sorted(set(points), reverse=True):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept[::-1]


def upstream_at(points: Sequence[Point], level: float) -> float | None:
    """The upstream score at a downstream score; None where that is not reached.

    Args:
        points: (downstream, upstream) of every setting.
        level: of downstream; below the frontier's first point that point is had.
    """
    best = frontier(points)
    if not best or level > best[-1][0]:
        return None
    for (low, high), (beyond, less) in pairwise(best):
        if low < level <= beyond:
            return high + (less - high) * (level - low) / (beyond - low)
    return best[0][1]


def matched(methods: Mapping[str, Sequence[Point]]) -> tuple[float, dict[str, float | None]] | None:
    """Compare methods at the highest downstream score, in whole hundredths, that three quarters of them reach.

    Args:
        methods: name -> (downstream, upstream) of every setting that finished.

    Returns:
        That score, and name -> upstream there, None where it is not reached; nothing without two methods.
    """
    reached = sorted((max(points)[0] for points in methods.values() if points), reverse=True)
    if len(reached) < 2:
        return None
    level = int(100 * reached[max(1, int(_SHARE * len(reached))) - 1] + 1e-9) / 100
    return level, {name: upstream_at(points, level) for name, points in methods.items() if points}
