"""Strings in, one number out: torchmetrics over predictions and lists of references."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from torchmetrics import Metric

from dowser_pl.errors import DowserError
from dowser_pl.metrics.cider import Cider, check_captions, tokenise
from dowser_pl.metrics.exact_match import ExactMatch, StrictMatch
from dowser_pl.metrics.multiple_choice import MultipleChoice
from dowser_pl.metrics.vqa import VQAAccuracy

METRICS: dict[str, type[Metric]] = {
    "exact_match": ExactMatch,
    "exact_match_strict": StrictMatch,
    "vqa": VQAAccuracy,
    "multiple_choice": MultipleChoice,
    "cider": Cider,
}


def metric_name(metric: str | Mapping[str, Mapping[str, bool] | None]) -> str:
    """The name of a metric that a task may also give with its options: `{"exact_match": {"strict": True}}`.

    Raises:
        DowserError: it is not one metric, or has no such option.
    """
    if isinstance(metric, str):
        return metric
    one = isinstance(metric, Mapping) and len(metric) == 1
    name, options = next(iter(metric.items())) if one else (None, None)
    if name != "exact_match" or not (options is None or (isinstance(options, Mapping) and set(options) <= {"strict"})):
        raise DowserError(
            f"metric: got {metric}, expected the name of one metric, or one with its options: "
            "`exact_match: {strict: true}` (the only one that has any)."
        )
    strict = (options or {}).get("strict", False)
    if not isinstance(strict, bool):
        raise DowserError(f"metric: exact_match is strict or not, true or false; got {strict!r}.")
    return "exact_match_strict" if strict else "exact_match"


def build_metric(name: str) -> Metric:
    """A fresh metric by its name in a task: `update(predictions, references)`, then `compute()`.

    Raises:
        DowserError: no metric has this name.
    """
    if name not in METRICS:
        near = get_close_matches(name, METRICS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DowserError(f"Unknown metric {name!r}, expected one of: {', '.join(METRICS)}.{hint}")
    return METRICS[name]()


def check_references(name: str, references: Sequence[Sequence[str]]) -> None:
    """Refuse a whole set that a metric could not score, long before there are answers.

    Raises:
        DowserError: nothing in it counts, or a row cannot be scored.
    """
    build_metric(name).update([""] * len(references), references)
    if name == "cider":
        check_captions([[tokenise(caption) for caption in captions] for captions in references])


__all__ = [
    "METRICS",
    "Cider",
    "ExactMatch",
    "MultipleChoice",
    "StrictMatch",
    "VQAAccuracy",
    "build_metric",
    "check_references",
    "metric_name",
]
