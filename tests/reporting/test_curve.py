"""The curve of one run and what a budget chose, in a report and in report.json."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from dowser_pl.reporting import BudgetChoice, CurvePoint, Report, TaskScore
from tests.reporting.samples import curve, report, with_budget, with_curve

ONE = {"digits": TaskScore("downstream", "exact_match", 0.0, 0.5)}


def test_means() -> None:
    means = with_curve().curve_means
    assert [point[:3] for point in means] == [(0.0, 0.0, 0.75), (0.05, 0.25, 0.75), (0.1, 0.5, 0.5)]
    assert [point.h_score for point in means] == pytest.approx([0.0, 2 * 0.25 * 0.75, 0.5])


def test_knee() -> None:
    assert with_curve().knee == 0.05
    assert report().knee is None


def test_layout() -> None:
    content = json.loads(with_budget().to_json())
    assert content["curve"][1] == {
        "update_ratio": 0.05,
        "tasks": {"colour": 0.875, "digits": 0.25, "ocr": 0.625},
        "upstream": 0.75,
        "downstream": 0.25,
        "h_score": pytest.approx(0.375),
        "knee": True,
    }
    assert [point["knee"] for point in content["curve"]] == [False, True, False]
    assert content["knee"] == 0.05
    assert content["budget"] == {
        "max_upstream_drop": 0.02,
        "update_ratio": 0.05,
        "kept": True,
        "drops": [{"update_ratio": 0.05, "drop": 0.013}, {"update_ratio": 0.1, "drop": 0.25}],
        "max_drift": None,
        "drifts": [],
    }


def test_layout_without_a_curve() -> None:
    content = json.loads(report().to_json())
    assert (content["curve"], content["knee"], content["budget"]) == ([], None, None)


@pytest.mark.parametrize("run", [with_curve(), with_budget(), with_budget(kept=False)])
def test_round_trip(run: Report) -> None:
    assert Report.from_json(run.to_json()) == run


def test_means_and_knee_of_a_file_are_computed_again() -> None:
    content = json.loads(with_curve().to_json())
    content["knee"] = 0.1
    content["curve"][0] |= {"upstream": 0.0, "knee": True}
    assert Report.from_json(json.dumps(content)) == with_curve()
    assert json.loads(Report.from_json(json.dumps(content)).to_json())["knee"] == 0.05


@pytest.mark.parametrize("missing", [True, False])
def test_reports_of_older_versions(missing: bool) -> None:
    content = json.loads(report().to_json())
    for key in ("curve", "knee", "budget"):
        if missing:
            del content[key]
        else:
            content[key] = None
    assert Report.from_json(json.dumps(content)) == report()


def test_one_role() -> None:
    points = [CurvePoint(ratio, {"digits": ratio}) for ratio in (0.0, 0.25, 0.5)]
    run = report(tasks=ONE, curve=points)
    assert run.knee is None
    assert run.curve_means[1] == (0.25, 0.25, None, None)
    assert json.loads(run.to_json())["curve"][1]["upstream"] is None


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ([0.01, 0.05], r"has the update ratios 0\.01, 0\.05; expected each once, rising from 0 \(the base model\)"),
        ([0, 0.1, 0.05], "expected each once, rising"),
        ([0, 0.1, 0.1], "expected each once, rising"),
        ([0, 0.5, 1.5], "to at most 1"),
        ([0, math.nan], "update ratios 0, nan"),
        ([math.nan], "update ratios nan"),
        ([-0.1, 0, 0.1], "update ratios -0.1, 0"),
    ],
)
def test_ratios_rise_from_the_base_model(ratios: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report(curve=[CurvePoint(ratio, curve()[0].scores) for ratio in ratios])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"colour": 1.0, "digits": 0.0}, r"at update ratio 0\.1 the tasks colour, digits; .*: colour, digits, ocr\."),
        ({}, "the tasks none; expected those of the report"),
        ({"colour": 1.0, "digits": 0.0, "ocr": 0.5, "sum": 0.5}, "the tasks colour, digits, ocr, sum"),
        ({"colour": 1.0, "digits": 0.0, "ocr": -0.5}, r"task 'ocr' at update ratio 0\.1 the score -0\.5, expected a"),
        ({"colour": 1.0, "digits": math.inf, "ocr": 0.5}, "task 'digits' at update ratio 0.1 the score inf"),
        ({"colour": math.nan, "digits": 0.0, "ocr": 0.5}, "task 'colour' at update ratio 0.1 the score nan"),
    ],
)
def test_every_point_has_possible_scores_of_the_report_s_tasks(scores: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report(curve=[*curve()[:2], CurvePoint(0.1, scores)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_upstream_drop": -0.1}, r"max_upstream_drop is -0\.1, expected a finite number of at least 0\."),
        ({"max_upstream_drop": math.nan}, "max_upstream_drop is nan"),
        ({"update_ratio": 0.07}, r"chose update ratio 0\.07, expected one that was measured: 0\.05, 0\.1\."),
        ({"drops": {}}, "expected one that was measured: none"),
        ({"drops": {0.05: math.inf}}, r"the drop inf at update ratio 0\.05, expected a finite drop and a ratio in"),
        ({"drops": {0.05: 0.1, 1.5: 0.1}}, r"the drop 0\.1 at update ratio 1\.5"),
    ],
)
def test_impossible_budget(change: dict[str, Any], message: str) -> None:
    budget = BudgetChoice(0.02, 0.05, True, {0.05: 0.013, 0.1: 0.25})
    with pytest.raises(ValueError, match=message):
        report(budget=replace(budget, **change))


def test_more_upstream_than_before_is_a_negative_drop() -> None:
    budget = BudgetChoice(0.0, 0.05, True, {0.05: -0.01})
    assert Report.from_json(report(budget=budget).to_json()).budget == budget


def test_a_budget_may_limit_drift_alone_or_both() -> None:
    alone = BudgetChoice(None, 0.05, True, max_drift=0.01, drifts={0.05: 0.004, 0.1: 0.02})
    both = replace(alone, max_upstream_drop=0.02, drops={0.05: -0.01, 0.1: 0.3})
    for budget in (alone, both):
        assert Report.from_json(report(budget=budget).to_json()).budget == budget
    with pytest.raises(ValueError, match="limits nothing"):
        report(budget=replace(alone, max_drift=None))
    with pytest.raises(ValueError, match=r"chose update ratio 0\.07, expected one that was measured: 0\.05, 0\.1\."):
        report(budget=replace(both, update_ratio=0.07))


SCORES = {"colour": 1.0, "digits": 0.0, "ocr": 0.5}
BUDGET = json.loads(with_budget().to_json())["budget"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curve": {}}, r"a/report\.json: the field 'curve' is an object, expected a list of objects"),
        ({"curve": [3]}, r"a/report\.json: curve\[0\] is the number 3, expected an object"),
        ({"curve": [{"tasks": SCORES}]}, r"curve\[0\] has no field 'update_ratio'; it has: tasks"),
        (
            {"curve": [{"update_ratio": "x", "tasks": {}}]},
            r"curve\[0\]: the field 'update_ratio' is a text",
        ),
        ({"curve": [{"update_ratio": 0}]}, r"curve\[0\] has no field 'tasks'"),
        ({"curve": [{"update_ratio": 0, "tasks": {"ocr": None}}]}, r"curve\[0\]: tasks: the field 'ocr' is null"),
        (
            {"curve": [{"update_ratio": 0.1, "tasks": SCORES}]},
            r"^a/report\.json: The curve has the update ratios",
        ),
        ({"budget": 0.02}, r"budget is the number 0\.02, expected an object"),
        ({"budget": BUDGET | {"kept": 1}}, "budget: the field 'kept' is the number 1, expected true or false"),
        ({"budget": BUDGET | {"drops": {}}}, "budget: the field 'drops' is an object, expected a list of objects"),
        ({"budget": BUDGET | {"drops": [{"drop": 1}]}}, r"budget: drops\[0\] has no field 'update_ratio'"),
        ({"budget": BUDGET | {"update_ratio": 0.07}}, r"^a/report\.json: The budget chose update ratio 0\.07"),
        ({"budget": {"kept": True}}, "budget has no field 'update_ratio'; it has: kept"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], message: str) -> None:
    content = json.loads(report().to_json()) | change
    with pytest.raises(ValueError, match=message):
        Report.from_json(json.dumps(content), "a/report.json")
