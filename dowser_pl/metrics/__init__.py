"""Strings in, one number out: torchmetrics over predictions and lists of references."""

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torchmetrics import Metric

from dowser_pl.errors import DowserError
from dowser_pl.files.class_path import class_named
from dowser_pl.metrics.captions import Bleu4, Meteor, RougeL
from dowser_pl.metrics.cider import Cider, check_captions, tokenise
from dowser_pl.metrics.exact_match import ExactMatch, StrictMatch
from dowser_pl.metrics.likelihood import ChoiceLikelihood, ChoiceLikelihoodPerToken, LikelihoodMetric, Perplexity
from dowser_pl.metrics.mmbench import MMBench
from dowser_pl.metrics.multiple_choice import MultipleChoice
from dowser_pl.metrics.pope import POPEF1, POPEAccuracy
from dowser_pl.metrics.protocols import (
    ANLS,
    AOKVQAAccuracy,
    GQAAccuracy,
    LowerMatch,
    RelaxedAccuracy,
    ScienceQA,
    ScienceQAPrefix,
    UnpunctuatedMatch,
)
from dowser_pl.metrics.vqa import VQAAccuracy

METRICS: dict[str, type[Metric]] = {
    "exact_match": ExactMatch,
    "exact_match_strict": StrictMatch,
    "vqa": VQAAccuracy,
    "multiple_choice": MultipleChoice,
    "cider": Cider,
    "perplexity": Perplexity,
    "choice_likelihood": ChoiceLikelihood,
    "choice_likelihood_per_token": ChoiceLikelihoodPerToken,
    "anls": ANLS,
    "relaxed_accuracy": RelaxedAccuracy,
    "gqa": GQAAccuracy,
    "aokvqa": AOKVQAAccuracy,
    "exact_match_lower": LowerMatch,
    "exact_match_unpunctuated": UnpunctuatedMatch,
    "scienceqa": ScienceQA,
    "scienceqa_prefix": ScienceQAPrefix,
    "pope": POPEAccuracy,
    "pope_f1": POPEF1,
    "mmbench": MMBench,
    "bleu4": Bleu4,
    "rouge_l": RougeL,
    "meteor": Meteor,
}
_OPTIONS = {"exact_match": ("strict", "_strict"), "choice_likelihood": ("per_token", "_per_token")}


def metric_name(metric: str | Mapping[str, Mapping[str, Any] | None]) -> str:
    """The name of a metric that a task may also give with its options.

    `{"exact_match": {"strict": True}}`, or a class path with what the class takes:
    `{"my_package.Contains": {"casefold": True}}`, which becomes `my_package.Contains{"casefold": true}`.

    Raises:
        DowserError: it is not one metric, or has no such option.
    """
    if isinstance(metric, str):
        return metric
    name, options = next(iter(metric.items())) if isinstance(metric, Mapping) and len(metric) == 1 else (None, None)
    named = isinstance(name, str) and (options is None or isinstance(options, Mapping))
    if named and "." in str(name):
        return f"{name}{json.dumps(options, sort_keys=True)}" if options else str(name)
    option, ending = _OPTIONS.get(str(name), ("", ""))
    if not named or not option or not set(options or {}) <= {option}:
        raise DowserError(
            f"metric: got {metric}, expected the name of one metric, or one with its options: `exact_match: {{strict: "
            "true}` or `choice_likelihood: {per_token: true}` (the only ones of ours that have any), or "
            "`my_package.Contains: {casefold: true}`."
        )
    is_on = (options or {}).get(option, False)
    if not isinstance(is_on, bool):
        raise DowserError(f"metric: {name} is {option} or not, true or false; got {is_on!r}.")
    return f"{name}{ending}" if is_on else str(name)


SCORER = "dowser_pl 2"
"""Who scores, with a number that is raised where a metric gives other numbers than before for the same answers."""
_NORMALISATION = {
    "exact_match": "case, spaces, and marks at word ends",
    "exact_match_strict": "case and spaces",
    "exact_match_lower": "case, and spaces at both ends",
    "exact_match_unpunctuated": "case and ASCII punctuation",
    "vqa": "EvalAI",
    "multiple_choice": "the letter, read from the ways models write it, or the text",
    "cider": "words as PTBTokenizer splits them, without Java",
    "bleu4": "words as PTBTokenizer splits them, without Java",
    "rouge_l": "words as PTBTokenizer splits them, without Java",
    "meteor": "words as PTBTokenizer splits them, then those of METEOR 1.5",
    "gqa": "full stops at the end and case",
    "aokvqa": "spaces",
    "scienceqa": "the letter, by the rules of LLaVA",
    "scienceqa_prefix": "the letter, by the rules of lmms-eval",
    "pope": "no or yes, from the first sentence",
    "pope_f1": "no or yes, from the first sentence",
    "mmbench": "the letter, by the rules of MMBench; all turns of a question",
    "anls": "case and spaces",
    "relaxed_accuracy": "case; numbers within 5 %",
}


def scoring(metric: str, max_new_tokens: int) -> dict[str, Any]:
    """What is told of how answers to a task are scored, beside a report's numbers.

    Args:
        metric: name, as in a task.
        max_new_tokens: how long an answer may be.
    """
    rule = _NORMALISATION.get(metric, "none" if metric in METRICS else "its own")
    told: dict[str, Any] = {"name": "own", "max_new_tokens": max_new_tokens, "metric": metric}
    return told | {"normalisation": rule, "scorer": SCORER}


def by_likelihood(name: str) -> bool:
    """Whether a metric asks how likely the candidates of a question are, and not for an answer."""
    return issubclass(METRICS.get(name, Metric), LikelihoodMetric)


def metric_label(name: str) -> str:
    """What logs and reports call the metric: of a class path the class alone."""
    return name if name in METRICS else name.partition("{")[0].rpartition(".")[2]


def build_metric(name: str) -> Metric:
    """A fresh metric by its name in a task: `update(predictions, references)`, then `compute()`.

    Args:
        name: one of `METRICS`, or the path of a `torchmetrics.Metric` of anybody's; see `metric_name` for its options.

    Raises:
        DowserError: no metric has this name, or the class does not keep to what is asked of a metric.
    """
    if name in METRICS:
        return METRICS[name]()
    path, brace, options = name.partition("{")
    if metric_label(name) in METRICS:
        raise DowserError(f"metric {path}: a class of this name would be taken for ours; give it another name")
    cls = class_named(path, Metric, "metric", METRICS)  # type: ignore[type-abstract]
    try:
        metric = cls(**json.loads(brace + options or "{}"))
        inspect.signature(metric.update).bind([], [])
    except (TypeError, ValueError) as error:
        raise DowserError(
            f"metric {path}: {error}. Expected a class that is built from its options alone, and whose "
            "update(predictions, references) takes texts, and for each of them the list of what is right"
        ) from error
    if metric.higher_is_better is False:
        raise DowserError(f"metric {path}: lower is better (higher_is_better), but a report takes higher for better")
    if not any(part.metric_state for part in _parts(metric)):
        raise DowserError(
            f"metric {path} keeps nothing in states, so that several processes could not put together what each has "
            "seen. Fix: self.add_state('total', default=torch.zeros(()), dist_reduce_fx='sum') in its __init__"
        )
    return metric


def add_rows(metric: Metric, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Update a metric, of whose class nothing is known.

    Raises:
        DowserError: it cannot score these rows; whatever else it raises becomes this.
    """
    try:
        metric.update(predictions, references)
    except DowserError:
        raise
    except Exception as error:
        raise DowserError(
            f"{type(metric).__name__} cannot score this: {type(error).__name__}: {error}. Expected that "
            "update(predictions, references) takes any answer, an empty one too, and for each a list of what is right"
        ) from error


def check_references(name: str, references: Sequence[Sequence[str]]) -> None:
    """Refuse a whole set that a metric could not score, long before there are answers.

    A metric by class path scores the first row's own reference as well, to see that it gives one number.

    Raises:
        DowserError: nothing in it counts, a row cannot be scored, or what comes out is no score.
    """
    add_rows(build_metric(name), [""] * len(references), references)
    if name == "cider":
        check_captions([[tokenise(caption) for caption in captions] for captions in references])
    if name not in METRICS:
        _check_score(name, references[0])


def _check_score(name: str, references: Sequence[str]) -> None:
    label = metric_label(name)
    try:
        score = score_here(build_metric(name), references[:1], [references])
    except (ValueError, TypeError, RuntimeError) as error:
        raise DowserError(f"metric {label}: {error}; expected that compute() gives one number") from error
    if not (math.isfinite(score) and score >= 0):
        raise DowserError(
            f"metric {label}: compute() gives {score} for the right answer {references[0]!r}, expected a finite number "
            "of at least 0"
        )


def score_here(metric: Metric, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The score of these rows alone, without asking other processes."""
    for part in _parts(metric):
        part.sync_on_compute = False
    add_rows(metric, predictions, references)
    return float(metric.compute())


def _parts(metric: Metric) -> list[Metric]:
    """The metric and those that it is made of."""
    return [part for part in metric.modules() if isinstance(part, Metric)]


__all__ = [
    "METRICS",
    "ChoiceLikelihood",
    "Cider",
    "ExactMatch",
    "LikelihoodMetric",
    "MultipleChoice",
    "Perplexity",
    "StrictMatch",
    "VQAAccuracy",
    "add_rows",
    "build_metric",
    "by_likelihood",
    "check_references",
    "metric_label",
    "metric_name",
    "score_here",
    "scoring",
]
