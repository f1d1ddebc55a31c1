"""What is said of roles, metrics and scales, and what of other programs' tasks is compared."""

from dataclasses import replace

import pytest

from dowser_pl.bench.differences import compared
from dowser_pl.errors import DowserError
from dowser_pl.reporting.harnesses import Measured, Terms, Value, comparable_answers
from tests.reporting.harnesses.result_files import standard_error

ONE, OTHER = (1.0, 0.0, 0.0, 1.0, 0.0), (1.0, 1.0, 0.0, 1.0, 1.0)


def measured(*scores, score=None, scale=1.0, metric="exact_match", **protocol):
    rows = [{"id": str(i), "question": "?", "references": ["yes"], "prediction": ""} for i in range(len(scores))]
    mean = scale * sum(scores) / len(scores) if scores else score
    values = {metric: Value(mean, None if scores else 0.25, tuple(scores))}
    return Measured("a file", values, {"name": "lmms-eval", **protocol}, len(scores) or 40, rows)


def evaluation(terms, **models):
    return compared(comparable_answers(models, terms))


def test_means_h_score_errors_and_differences():
    tasks = {"gqa": (ONE, OTHER), "mine": ((0.0, 0.5), (1.0, 0.5)), "told": (None, None)}
    before, after = (
        {name: measured(*each[place] or (), score=0.5) for name, each in tasks.items()} for place in (0, 1)
    )
    found = evaluation(Terms(("mine",)), base=before, tuned=after)
    report = found.report("tuned")
    assert report.upstream.before == pytest.approx((0.4 + 0.5) / 2) and report.upstream.after == pytest.approx(0.65)
    assert report.downstream.after == 0.75 and report.h_score.after == pytest.approx(2 * 0.65 * 0.75 / 1.4)
    gqa = found.models["base"]["gqa"]
    assert gqa.count == 5 and gqa.standard_error == pytest.approx(standard_error(ONE))
    told = found.models["tuned"]["told"]
    assert (told.count, told.standard_error) == (40, 0.25), "of the file, where it keeps no single answers"
    difference = found.differences["tuned"]["gqa"]
    assert difference.value == pytest.approx(0.4) and 0 <= difference.low < 0.4 < difference.high <= 0.8
    assert set(found.differences["tuned"]) == {"gqa", "mine", "downstream mean"}, "a mean needs all of its tasks"
    assert found.questions["tuned"]["gqa"].gained == 2


@pytest.mark.parametrize("singles", [1.0, 100.0])
def test_percent_are_shares_when_that_is_said(singles):
    scores = tuple(each * singles for each in ONE)
    tasks = {"gqa": measured(*scores, scale=100 / singles)}
    with pytest.raises(DowserError, match="these scores are no shares of 1: gqa 40. Fix: .* --out-of gqa=100"):
        Terms().answered(tasks)
    answered = Terms(tops={"gqa": 100.0}).answered(tasks)["gqa"]
    assert answered.score == pytest.approx(0.4) and [row["score"] for row in answered.rows] == list(ONE)
    assert answered.scored().standard_error == pytest.approx(standard_error(ONE))


def test_a_few_percent_are_found_out_by_single_scores():
    tasks = {"hard": measured(*[0.0] * 199, 1.0, scale=100)}
    assert tasks["hard"].values["exact_match"].score == 0.5
    with pytest.raises(DowserError, match="no shares of 1: hard 0.5"):
        Terms().answered(tasks)


def test_the_standard_error_of_the_file_is_on_its_scale():
    answered = Terms(tops={"mme": 2000.0}).answered({"mme": measured(score=1500.0)})["mme"]
    assert answered.score == 0.75 and answered.scored().standard_error == 0.25 / 2000
    with pytest.raises(DowserError, match="got --out-of mme=1000, but it scores 1500"):
        Terms(tops={"mme": 1000.0}).answered({"mme": measured(score=1500.0)})


def test_cider_is_left_as_it_is():
    assert Terms().answered({"coco": measured(score=1.2, metric="coco_CIDEr")})["coco"].score == 1.2
    with pytest.raises(DowserError, match="no shares of 1: coco 119"):
        Terms().answered({"coco": measured(score=119.0, metric="CIDEr")})


def several(**values):
    return {"coco": replace(measured(score=0.5), values={name: Value(score) for name, score in values.items()})}


def test_which_score_counts():
    assert Terms().answered(several(coco_Bleu_4=0.3, coco_CIDEr=1.1))["coco"].asked.metric == "coco_CIDEr"
    assert Terms().answered(several(Overall=0.3, AR=0.1))["coco"].asked.metric == "Overall"
    told = Terms(metrics={"coco": "coco_Bleu_4"}).answered(several(coco_Bleu_4=0.3, coco_CIDEr=1.1))["coco"]
    assert told.score == 0.3 and told.asked.protocol["metric"] == "coco_Bleu_4"
    with pytest.raises(
        DowserError, match=r"coco has several scores. Fix: --metric coco=NAME with one of: a, b \(a file\)"
    ):
        Terms().answered(several(a=0.1, b=0.2))
    with pytest.raises(DowserError, match="got --metric coco=c. Fix"):
        Terms(metrics={"coco": "c"}).answered(several(a=0.1, b=0.2))
    with pytest.raises(DowserError, match="has no score of coco"):
        Terms().answered(several())
    lower = {"asr": replace(measured(score=0.5), values={"wer": Value(0.1, lower_is_better=True)})}
    with pytest.raises(DowserError, match="of asr, wer is better the lower it is"):
        Terms().answered(lower)


def test_roles():
    tasks = {name: measured(score=0.5) for name in ("a", "b", "c")}
    found = Terms(("b",)).answered(tasks)
    assert {name: each.asked.role for name, each in found.items()} == {
        "a": "upstream",
        "b": "downstream",
        "c": "upstream",
    }
    assert list(Terms(("b",), ("c",)).answered(tasks)) == ["b", "c"]
    for terms in (Terms(("d",)), Terms((), ("d",)), Terms(metrics={"d": "x"}), Terms(tops={"d": 100.0})):
        with pytest.raises(DowserError, match="names d, expected a task of: a, b, c"):
            terms.answered(tasks)
    with pytest.raises(DowserError, match="there is no task to compare"):
        Terms().answered({})
    with pytest.raises(DowserError, match="b is both upstream and downstream"):
        Terms(("b",), ("a", "b")).answered(tasks)


@pytest.mark.parametrize("changed", [{"version": 1}, {"n-shot": 4}, {"limit": 8.0}, {"scorer": "lmms-eval 0.7.2"}])
def test_what_was_asked_in_another_way_is_not_compared(changed):
    (key,) = changed
    with pytest.raises(DowserError, match=f"'gqa' was not measured in the same way: {key} is None in run 1"):
        evaluation(Terms(), base={"gqa": measured(*ONE)}, tuned={"gqa": measured(*ONE, **changed)})


def test_other_questions_are_not_compared():
    one, other = measured(*ONE), measured(*OTHER)
    with pytest.raises(DowserError, match="questions is 5 in run 1, 2 in run 2"):
        evaluation(Terms(), base={"gqa": one}, tuned={"gqa": measured(1.0, 0.0)})
    other.rows[3]["references"] = ["no"]
    with pytest.raises(DowserError, match="base and tuned were not asked the same questions of task gqa: 3 is another"):
        evaluation(Terms(), base={"gqa": one}, tuned={"gqa": other})
    with pytest.raises(DowserError, match="task pope was asked of tuned alone. Fix: name the tasks to compare"):
        evaluation(Terms(), base={"gqa": one}, tuned={"gqa": measured(*OTHER), "pope": measured(*ONE)})
    found = evaluation(Terms((), ("gqa",)), base={"gqa": one}, tuned={"gqa": measured(*OTHER), "pope": measured(*ONE)})
    assert list(found.tasks) == ["gqa"]


def test_answers_of_one_model_alone_are_no_pairs():
    told = replace(measured(score=0.4), count=5)
    base, tuned = {"a": measured(*ONE), "b": measured(*ONE)}, {"a": measured(*OTHER), "b": told}
    found = evaluation(Terms(), base=base, tuned=tuned)
    assert set(found.differences["tuned"]) == {"a"}
    assert found.models["base"]["b"].standard_error and found.models["tuned"]["b"].standard_error == 0.25
