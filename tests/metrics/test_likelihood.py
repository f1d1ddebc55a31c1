"""Metrics of likelihoods: what they make of nats and tokens."""

import math

import pytest

from dowser_pl.metrics import build_metric, by_likelihood, check_references, metric_label, metric_name, score_here


def test_perplexity_is_the_mean_over_tokens_not_over_texts():
    metric = build_metric("perplexity")
    said = [metric.prediction(["a", "b"], [1.5, 2.25], [3, 4]), metric.prediction(["c"], [10.0], [1])]
    assert said == ["3.750000000 nats over 7 tokens", "10.000000000 nats over 1 tokens"]
    assert score_here(metric, said, [["a", "b"], ["c"]]) == pytest.approx(math.exp(13.75 / 8), rel=1e-12)


def test_perplexity_does_not_depend_on_the_order():
    metric = build_metric("perplexity")
    said = [metric.prediction(["a"], [0.1 * number], [1 + number]) for number in range(50)]
    found = {score_here(build_metric("perplexity"), order, [["a"]] * 50) for order in (said, said[::-1])}
    assert len(found) == 1


def test_a_broken_model_has_a_finite_perplexity():
    metric = build_metric("perplexity")
    score = score_here(metric, [metric.prediction(["a"], [1e6], [2])], [["a"]])
    assert score == pytest.approx(math.exp(50))


def test_perplexity_takes_no_answer_for_a_measurement():
    with pytest.raises(ValueError, match="got the prediction 'Paris', expected what was measured.*`candidates`"):
        build_metric("perplexity").update(["", "Paris"], [["Paris"], ["Paris"]])
    with pytest.raises(ValueError, match="no token was measured"):
        score_here(build_metric("perplexity"), [""], [["Paris"]])


@pytest.mark.parametrize(
    ("name", "nats", "tokens", "chosen"),
    [
        ("choice_likelihood", [3.0, 2.0, 4.0], [1, 1, 9], "b"),
        ("choice_likelihood_per_token", [3.0, 2.0, 4.0], [1, 1, 9], "c"),
        ("choice_likelihood", [2.0, 2.0, 3.0], [5, 9, 1], "a"),
        ("choice_likelihood_per_token", [3.0, 1.0, 2.0], [1, 1, 2], "b"),
    ],
)
def test_the_likeliest_option_is_chosen_and_the_first_of_equal_ones(name, nats, tokens, chosen):
    metric = build_metric(name)
    assert metric.prediction(["a", "b", "c"], nats, tokens) == chosen
    assert score_here(metric, [chosen, "a "], [[chosen], ["a"]]) == 0.5


def test_names():
    assert metric_name({"choice_likelihood": {"per_token": True}}) == "choice_likelihood_per_token"
    assert metric_name({"choice_likelihood": {"per_token": False}}) == "choice_likelihood"
    assert metric_name({"choice_likelihood": None}) == metric_label("choice_likelihood") == "choice_likelihood"
    assert list(map(by_likelihood, ["perplexity", "choice_likelihood", "vqa", "torchmetrics.text.BLEUScore"])) == [
        True,
        True,
        False,
        False,
    ]
    for wrong in ({"choice_likelihood": {"strict": True}}, {"perplexity": {"per_token": True}}):
        with pytest.raises(ValueError, match="expected the name of one metric"):
            metric_name(wrong)
    with pytest.raises(ValueError, match="per_token or not, true or false; got 'yes'"):
        metric_name({"choice_likelihood": {"per_token": "yes"}})


def test_references_are_checked_without_a_model():
    for name in ("perplexity", "choice_likelihood"):
        check_references(name, [["a text"], ["another"]])
        with pytest.raises(ValueError, match="row 1 has no reference"):
            check_references(name, [["a text"], []])


def test_a_class_of_ones_own_is_not_taken_for_ours():
    with pytest.raises(ValueError, match="would be taken for ours"):
        build_metric("my_package.perplexity")
