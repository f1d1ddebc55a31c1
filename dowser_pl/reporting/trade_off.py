"""The trade-off between learning and remembering, as one number."""

import math


def h_score(upstream: float, downstream: float) -> float:
    """Harmonic mean of the upstream and the downstream score; 0 if either is 0.

    Both scores are means over tasks, higher is better, and on the same scale (accuracies in [0, 1]; CIDEr, where
    a task uses it, raw). High only if both are: a model that learnt nothing and one that forgot everything get 0.

    Raises:
        ValueError: a score is negative, NaN or infinite.
    """
    for name, score in (("upstream", upstream), ("downstream", downstream)):
        if not (math.isfinite(score) and score >= 0):
            raise ValueError(f"h_score: got {name} = {score}, expected a finite score of at least 0.")
    if upstream == 0 or downstream == 0:
        return 0.0
    return 2 / (1 / upstream + 1 / downstream)
