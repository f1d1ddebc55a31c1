"""A metric that is not ours, named by its class path."""

import json

import pytest
from torchmetrics.text import BLEUScore

from dowser_pl.data.benchmarks import TaskFile, read_task
from dowser_pl.metrics import build_metric, check_references, metric_label, metric_name, score_here
from tests.own_classes import write_package

CONTAINS = "my_package.metrics.Contains"


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    write_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_it_is_built_by_its_path_and_options():
    plain, folded = metric_name(CONTAINS), metric_name({CONTAINS: {"casefold": True}})
    assert metric_name({CONTAINS: None}) == plain == CONTAINS
    rows = ["It is Red.", "green"], [["red"], ["green", "lime"]]
    assert score_here(build_metric(plain), *rows) == 0.5
    assert score_here(build_metric(folded), *rows) == 1.0
    assert metric_label(plain) == metric_label(folded) == "Contains"
    assert metric_label("exact_match_strict") == "exact_match_strict"


def test_one_of_torchmetrics_does():
    name = metric_name({"torchmetrics.text.BLEUScore": {"n_gram": 2}})
    check_references(name, [["a red house", "a house"], ["two"]])
    built = build_metric(name)
    assert isinstance(built, BLEUScore)
    assert built.n_gram == 2
    assert score_here(built, ["a red house"], [["a red house", "a house"]]) == 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "Contians": "my_package.metrics has no 'Contians', expected a subclass of torchmetrics's Metric.*Contains",
        "Lower": "Lower: lower is better",
        "Stateless": "Stateless keeps nothing in states.*Fix: self.add_state",
        "OneArgument": r"OneArgument: too many positional arguments. Expected.*update\(predictions, references\)",
        "Needs": "Needs: .*missing 1 required positional argument: 'vocabulary'. Expected a class that is built from",
        'Contains{"fold": 1}': "Contains: .*unexpected keyword argument 'fold'",
    }.items(),
)
def test_a_class_that_does_not_keep_to_the_contract_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        TaskFile("t", "t.json", metric=f"my_package.metrics.{name}")


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "Texts": "Texts cannot score this: AttributeError: 'list' object has no attribute 'strip'. Expected that",
        "Many": r"metric Many: .*; expected that compute\(\) gives one number",
        "Negative": r"metric Negative: compute\(\) gives -1.0 for the right answer 'red', expected a finite number",
    }.items(),
)
def test_one_that_gives_no_score_is_found_before_training(name, message):
    with pytest.raises(ValueError, match=message):
        check_references(f"my_package.metrics.{name}", [["red"], ["green"]])


def test_a_row_that_it_cannot_score_is_named(tmp_path):
    rows = [{"question": "q", "answer": "red"}, {"question": "q", "answer": "?"}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    task = TaskFile("t", str(tmp_path / "t.json"), metric={CONTAINS: {"casefold": True}})
    with pytest.raises(ValueError, match=r"t.json row 2: Contains cannot score this: ValueError: nobody knows"):
        read_task(task)
    with pytest.warns(UserWarning, match="left out 1 of 2"):
        assert read_task(task, skip_bad_rows=True).metric == f'{CONTAINS}{{"casefold": true}}'
