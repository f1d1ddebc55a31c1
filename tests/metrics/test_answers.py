import warnings

import pytest
import torch
from torch import distributed
from torchmetrics import Metric

from dowser_pl.metrics import METRICS, build_metric
from tests.distributed.harness import run

ROWS = [("two dogs", ["two dogs", "2 dogs"]), ("a cat", ["a bird"]), ("red", ["red"] * 3 + ["blue"] * 7)]


NAMES = [name for name in METRICS if name != "meteor"]  # which cannot be built without Java


def fed(name: str, rows: list[tuple[str, list[str]]], sync_on_compute: bool = True) -> Metric:
    metric = METRICS[name](sync_on_compute=sync_on_compute)
    metric.update([prediction for prediction, _ in rows], [references for _, references in rows])
    return metric


@pytest.mark.parametrize("name", NAMES)
def test_lengths_must_agree(name: str) -> None:
    with pytest.raises(ValueError, match="got 2 predictions and 1 lists"):
        build_metric(name).update(["A", "B"], [["A"]])


@pytest.mark.parametrize("name", NAMES)
def test_a_row_needs_a_reference(name: str) -> None:
    with pytest.raises(ValueError, match="row 1 has no reference"):
        build_metric(name).update(["A", "B"], [["A"], []])


@pytest.mark.parametrize("name", NAMES)
def test_bare_strings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"Write \['A'\]"):
        build_metric(name).update(["A"], ["A"])
    with pytest.raises(ValueError, match="got one string"):
        build_metric(name).update("A", ["A"])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", ["exact_match", "vqa", "multiple_choice"])
def test_no_rows_no_mean(name: str) -> None:
    with pytest.raises(ValueError, match="no row was scored"):
        build_metric(name).compute()


ANSWERS = [name for name in NAMES if name != "perplexity"]  # whose predictions are answers


BOOLEAN = [("yes", ["yes"]), ("yes", ["no"])]
OVER_ALL = ("bleu4", "rouge_l")  # which say nothing of single rows
OWN_ROWS = {  # whose references are of a form of their own
    "pope": BOOLEAN,
    "pope_f1": BOOLEAN,
    "mmbench": [("A", ["1", "A", "A. dog", "B. cat"]), ("B", ["2", "A", "A. dog", "B. cat"])],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_empty_batch_changes_nothing(name: str) -> None:
    rows = OWN_ROWS.get(name, [("A", ["A"]), ("B", ["C"])])
    metric = fed(name, rows)
    metric.update([], [])
    assert torch.equal(metric.compute(), fed(name, rows).compute())


def test_unknown_metric_names_the_known() -> None:
    with pytest.raises(
        ValueError,
        match=r"exact_match, exact_match_strict, vqa, .*, cider, perplexity, .*, the path.*mean exact_match",
    ):
        build_metric("exactmatch")


def scores_of_two_ranks_are_those_of_one() -> None:
    rank = distributed.get_rank()
    for name in ("exact_match", "vqa", "cider"):
        alone = fed(name, ROWS, sync_on_compute=False)
        for split in (1, 3):  # uneven, and one rank without any row
            shares = (ROWS[:split], ROWS[split:])
            assert torch.equal(fed(name, shares[rank]).compute(), alone.compute()), (name, split, rank)


@pytest.mark.slow
def test_ranks_reduce_exactly() -> None:
    run(scores_of_two_ranks_are_those_of_one)


@pytest.mark.parametrize("name", [name for name in ANSWERS if name not in (*OWN_ROWS, *OVER_ALL)])
def test_scores_of_rows_have_the_score_as_their_mean(name):
    predictions = ["B", "a cat on a mat", "(A) a dog", ""]
    references = [["B", "a red car"], ["A", "a cat on a mat"], ["A", "a dog in the sun"], ["C", "a house"]]
    metric = build_metric(name)
    scores = metric.row_scores(predictions, references)
    metric.update(predictions, references)
    assert len(scores) == 4
    assert sum(scores) / 4 == pytest.approx(float(metric.compute()))
    with pytest.raises(ValueError, match="no reference"):
        metric.row_scores(["a"], [[]])


NOTHING = {
    "anls": ["", " "],
    "relaxed_accuracy": ["", " "],
    "gqa": ["", " "],
    "exact_match_unpunctuated": ["", " "],
    "scienceqa": ["", " "],
    "scienceqa_prefix": ["", " "],
    "choice_likelihood": ["", " "],
    "choice_likelihood_per_token": ["", " "],
    "exact_match": ["", " \n"],
    "exact_match_strict": ["", "\t"],
    "exact_match_lower": ["", "\n"],
    "vqa": ["", ""],
    "multiple_choice": ["a dog", "I cannot tell"],
    "cider": ["", "..."],
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_zero_of_nothing_says_so(name):
    references = [["B", "a red car"], ["A", "a cat on a mat"]]
    metric = build_metric(name)
    metric.update(NOTHING[name], references)
    with pytest.warns(UserWarning, match="nothing can be read from any of the 2 predictions"):
        assert metric.compute() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric = build_metric(name)
        metric.update([NOTHING[name][0], "C"], references)
        assert metric.compute() == 0
