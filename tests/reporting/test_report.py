import json
import math
from typing import Any

import pytest

from dowser_pl.reporting import BeforeAfter, Report, TaskScore, role_means
from tests.reporting.samples import report

LAYOUT = [
    "method",
    "update_ratio",
    "seed",
    "tasks",
    "upstream",
    "downstream",
    "h_score",
    "frozen",
    "trainable",
    "seconds",
    "peak_memory_bytes",
    "versions",
    "learning_rate",
    "steps",
    "model",
    "run",
    "diagnostics",
    "update",
    "frozen_digest",
    "curve",
    "knee",
    "budget",
    "questions",
    "drift",
    "kept",
]


def test_derived_scores() -> None:
    run = report()
    assert run.upstream == BeforeAfter(0.75, 0.5)
    assert run.downstream == BeforeAfter(0.0, 0.5)
    assert run.h_score == BeforeAfter(0.0, 0.5)
    assert run.upstream.change == -0.25


def test_layout() -> None:
    content = json.loads(report().to_json())
    assert list(content) == LAYOUT
    task = {"role": "upstream", "metric": "vqa", "before": 0.5, "after": 0.25, "protocol": {}}
    assert content["tasks"]["ocr"] == task
    assert content["upstream"] == {"before": 0.75, "after": 0.5}
    assert content["frozen"] == {"entries": 900, "changed": 0}
    assert content["seconds"] == {"probe": 6.1, "fit": 72.0, "evaluate": 3725.0}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"update_ratio": None, "peak_memory_bytes": None, "learning_rate": None, "run": None},
        {"tasks": {}, "diagnostics": {}, "versions": {}, "frozen_digest": {}, "update": None},
    ],
)
def test_round_trip(changes: dict[str, Any]) -> None:
    run = report(**changes)
    assert Report.from_json(run.to_json()) == run


def test_one_role_missing() -> None:
    run = report(tasks={"digits": TaskScore("downstream", "exact_match", 0.0, 0.5)})
    content = json.loads(run.to_json())
    assert content["upstream"] == content["h_score"] == {"before": None, "after": None}
    assert content["downstream"] == {"before": 0.0, "after": 0.5}


@pytest.mark.parametrize("score", [math.nan, math.inf, -0.5])
def test_impossible_score_names_the_task(score: float) -> None:
    with pytest.raises(ValueError, match="vqa of task 'ocr' after training"):
        report(tasks={"ocr": TaskScore("upstream", "vqa", 0.5, score)})


@pytest.mark.parametrize("key", [key for key in LAYOUT[:12] if key not in ("upstream", "downstream", "h_score")])
def test_missing_field_is_named(key: str) -> None:
    content = json.loads(report().to_json())
    del content[key]
    with pytest.raises(ValueError, match=rf"runs/a/report.json has no field '{key}'"):
        Report.from_json(json.dumps(content), "runs/a/report.json")


def test_means_and_extras_may_be_missing() -> None:
    content = json.loads(report().to_json())
    for key in ("upstream", "downstream", "h_score", *LAYOUT[12:]):
        del content[key]
    assert Report.from_json(json.dumps(content)).upstream == report().upstream


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "three"}, "field 'seed' is a text, expected a whole number"),
        ({"seed": True}, "field 'seed' is true or false"),
        ({"method": None}, "field 'method' is null, expected a text"),
        ({"tasks": []}, "tasks is a list, expected an object"),
        ({"tasks": {"ocr": 3}}, "tasks: ocr is the number 3, expected an object"),
        ({"tasks": {"ocr": {"role": "sideways"}}}, "role is 'sideways', expected 'upstream' or 'downstream'"),
        ({"tasks": {"ocr": {"role": "upstream", "metric": "vqa"}}}, "tasks: ocr has no field 'before'"),
        ({"frozen": {"entries": 1, "changed": -1}}, "field 'changed' is the number -1"),
        ({"seconds": {"probe": 1, "fit": "x", "evaluate": 1}}, "field 'fit' is a text, expected a number"),
        ({"versions": {"torch": 2}}, "field 'torch' is the number 2, expected a text"),
    ],
)
def test_wrong_field_is_named(change: dict[str, Any], message: str) -> None:
    content = json.loads(report().to_json()) | change
    with pytest.raises(ValueError, match=message):
        Report.from_json(json.dumps(content))


def test_broken_json_names_the_line() -> None:
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON: line 2, column 1"):
        Report.from_json('{"method":\n', "a.json")
    with pytest.raises(ValueError, match=r"a\.json is a list, expected an object"):
        Report.from_json("[]", "a.json")


def test_role_means_agree_with_the_report() -> None:
    scores = [("upstream", 0.9), ("downstream", 0.5), ("upstream", 0.7)]
    assert role_means(scores) == pytest.approx(
        {"upstream_mean": 0.8, "downstream_mean": 0.5, "h_score": 2 * 0.8 * 0.5 / 1.3}
    )
    assert role_means([("upstream", 0.9)]) == {"upstream_mean": 0.9}
