"""Where a curve bends: the last ratio at which more is still learnt for little that is forgotten."""

from collections.abc import Sequence

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
