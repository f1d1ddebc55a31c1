"""The whole curve from one run: scores at every update ratio up to the trained one, and where it bends.

Masks of rising update ratio are nested, so one run at the largest ratio holds all smaller ones: updates are taken back
in the order of their scores, and the model is measured in between.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from dowser_pl.errors import DowserError
from dowser_pl.reporting.fields import Fields
from dowser_pl.reporting.scores import TaskScore, role_means

RatioMeans = tuple[float, float | None, float | None]  # (update ratio, downstream mean, upstream mean)
EXACTNESS = 1e-9  # a point this close to the chord, as a share of its distance from the base, lies on it


def knee(points: Sequence[RatioMeans]) -> float | None:
    """The update ratio whose point lies farthest above the chord from the first point to the last.

    The plane is downstream to the right, upstream upwards. The distance from a line is a cross product divided by the
    length of the chord, which is the same for all points, and other units of an axis multiply all cross products by
    the same number: so neither a division nor a common scale is needed, and CIDEr may stand beside accuracies.

    Where training lowered both means, above is the side of the higher downstream mean. Of points that are equally
    far the one of the smallest ratio is taken.

    Args:
        points: rising in ratio, the base model (ratio 0) first, the trained ratio last; None for a role without task.

    Returns:
        The ratio, or None: fewer than three points, a role without a task, no point above the chord, or nothing
        learnt and nothing lost, so that there is no trade-off to bend.

    Source:
        Satopaa, Albrecht, Irwin, Raghavan: Finding a "Kneedle" in a Haystack (ICDCS workshops 2011), with all points
        known and one knee asked for.
    """
    found = [(ratio, right, up) for ratio, right, up in points if right is not None and up is not None]
    if len(found) < 3 or len(found) < len(points):
        return None
    (_, first_right, first_up), (_, last_right, last_up) = found[0], found[-1]
    right, up = last_right - first_right, last_up - first_up
    if right <= 0 <= up:
        return None
    best, highest = None, 0.0
    for ratio, downstream, upstream in found[1:-1]:
        rise, run = right * (upstream - first_up), up * (downstream - first_right)
        height = rise - run
        if height > max(highest, EXACTNESS * (abs(rise) + abs(run))):
            best, highest = ratio, height
    return best


@dataclass(frozen=True)
class CurvePoint:
    """The model with the updates of one ratio left in, measured on the data of the report.

    Attributes:
        update_ratio: 0 = the base model.
        scores: task name -> score, of every task of the report.
    """

    update_ratio: float
    scores: dict[str, float]

    @classmethod
    def read(cls, point: Fields) -> "CurvePoint":
        """One entry of `curve` in report.json."""
        tasks = point.section("tasks")
        return cls(point.number("update_ratio"), {name: tasks.number(name) for name in tasks.value})


class CurveMeans(NamedTuple):
    """Means over the tasks of each role at one update ratio; None where a role has no task."""

    update_ratio: float
    downstream: float | None
    upstream: float | None
    h_score: float | None


def curve_means(curve: Sequence[CurvePoint], tasks: Mapping[str, TaskScore]) -> list[CurveMeans]:
    """Means of every point of a curve over `tasks`, which tell the roles."""
    found = []
    for point in curve:
        means = role_means((tasks[name].role, tasks[name].comparable(score)) for name, score in point.scores.items())
        names = ("downstream_mean", "upstream_mean", "h_score")
        found.append(CurveMeans(point.update_ratio, *map(means.get, names)))
    return found


def curve_knee(means: Sequence[CurveMeans]) -> float | None:
    """The update ratio where a curve bends, see `knee`."""
    return knee([(point.update_ratio, point.downstream, point.upstream) for point in means])


def curve_entries(curve: Sequence[CurvePoint], means: Sequence[CurveMeans]) -> list[dict[str, Any]]:
    """`curve` in report.json, of the points and their means."""
    bend = curve_knee(means)
    return [
        {
            "update_ratio": point.update_ratio,
            "tasks": dict(point.scores),
            "upstream": mean.upstream,
            "downstream": mean.downstream,
            "h_score": mean.h_score,
            "knee": point.update_ratio == bend,
        }
        for point, mean in zip(curve, means, strict=True)
    ]


def check_curve(curve: Sequence[CurvePoint], tasks: Mapping[str, TaskScore]) -> None:
    """Refuse a curve that does not belong to these tasks or is out of order.

    Raises:
        DowserError: ratios do not rise from 0 to at most 1, other tasks, or an impossible score.
    """
    ratios = [point.update_ratio for point in curve]
    if ratios and not (ratios[0] == 0 and all(low < high for low, high in pairwise(ratios)) and ratios[-1] <= 1):
        raise DowserError(
            f"The curve has the update ratios {', '.join(map(str, ratios))}; expected each once, rising from 0 (the "
            "base model) to at most 1."
        )
    for point in curve:
        if set(point.scores) != set(tasks):
            raise DowserError(
                f"The curve has at update ratio {point.update_ratio} the tasks {', '.join(point.scores) or 'none'}; "
                f"expected those of the report: {', '.join(tasks) or 'none'}."
            )
        for name, score in point.scores.items():
            if not (math.isfinite(score) and score >= 0):
                raise DowserError(
                    f"The curve has for task {name!r} at update ratio {point.update_ratio} the score {score}, "
                    "expected a finite score of at least 0."
                )
