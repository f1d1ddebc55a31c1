"""The table of `compare_estimators.py`: numbers per seed to `mean ± standard deviation`."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

__all__ = ["COLUMNS", "Numbers", "plus_minus", "summary", "table"]

Numbers = dict[str, float | None]
"""What one row gave with one seed; None where it does not apply."""
# number -> heading, decimals, factor
COLUMNS = {
    "rank_paper": ("rank, exact paper", 3, 1),
    "overlap_paper": ("overlap, exact paper", 3, 1),
    "rank_weight": ("rank, exact weight", 3, 1),
    "overlap_weight": ("overlap, exact weight", 3, 1),
    "overlap_two_seeds": ("overlap, two seeds", 3, 1),
    "shift_relative_text": ("KL relative", 3, 1000),
    "shift_relative_answers": ("of answers", 3, 1000),
    "shift_absolute_text": ("KL absolute", 2, 1000),
    "shift_absolute_answers": ("of answers", 2, 1000),
    "seconds": ("seconds", 1, 1),
    "downstream": ("downstream", 3, 1),
    "upstream": ("upstream", 3, 1),
    "h_score": ("H", 3, 1),
}


def plus_minus(values: Sequence[float | None], decimals: int, factor: float = 1) -> str:
    """`.912 ± .004`: mean and sample standard deviation; empty where a value is missing."""
    known = [value * factor for value in values if value is not None]
    if not known or len(known) < len(values):
        return ""
    parts = [mean(known), stdev(known)] if len(known) > 1 else [mean(known)]
    return " ± ".join(f"{part:.{decimals}f}".replace("0.", ".", 1 if abs(part) < 1 else 0) for part in parts)


def table(results: Mapping[str, Sequence[Numbers]]) -> str:
    """Markdown, one line per row; columns that no row has are left out."""
    shown = {
        key: column
        for key, column in COLUMNS.items()
        if any(numbers.get(key) is not None for per_seed in results.values() for numbers in per_seed)
    }
    lines = [["estimator", *(heading for heading, _, _ in shown.values())], [":--", *["--:"] * len(shown)]]
    for name, per_seed in results.items():
        cells = [
            plus_minus([numbers.get(key) for numbers in per_seed], decimals, factor)
            for key, (_, decimals, factor) in shown.items()
        ]
        lines.append([f"`{name}`", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(per_seed: Sequence[Numbers]) -> dict[str, Any]:
    """Numbers of every seed, their means and standard deviations."""
    columns = {key: [numbers[key] for numbers in per_seed] for key in per_seed[0]}
    complete = {key: [value for value in values if value is not None] for key, values in columns.items()}
    complete = {key: values for key, values in complete.items() if len(values) == len(per_seed)}
    return {
        "per_seed": list(per_seed),
        "mean": {key: mean(values) for key, values in complete.items()},
        "std": {key: stdev(values) for key, values in complete.items() if len(values) > 1},
    }
