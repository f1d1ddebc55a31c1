"""Strings in, one number out: torchmetrics over predictions and lists of references."""

from difflib import get_close_matches

from torchmetrics import Metric

from dowser_pl.metrics.cider import Cider
from dowser_pl.metrics.exact_match import ExactMatch
from dowser_pl.metrics.multiple_choice import MultipleChoice
from dowser_pl.metrics.vqa import VQAAccuracy

METRICS: dict[str, type[Metric]] = {
    "exact_match": ExactMatch,
    "vqa": VQAAccuracy,
    "multiple_choice": MultipleChoice,
    "cider": Cider,
}


def build_metric(name: str) -> Metric:
    """A fresh metric by its name in a task: `update(predictions, references)`, then `compute()`.

    Raises:
        ValueError: no metric has this name.
    """
    if name not in METRICS:
        near = get_close_matches(name, METRICS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown metric {name!r}, expected one of: {', '.join(METRICS)}.{hint}")
    return METRICS[name]()


__all__ = ["METRICS", "Cider", "ExactMatch", "MultipleChoice", "VQAAccuracy", "build_metric"]
