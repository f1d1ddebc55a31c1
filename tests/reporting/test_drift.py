import json

import pytest

from dowser_pl.errors import DowserError
from dowser_pl.reporting import DriftScore, Report, TaskScore, markdown_page, text_comparison, text_table
from dowser_pl.reporting.drift import kl_text
from dowser_pl.reporting.html import html_page
from dowser_pl.reporting.plots.run import headline, notes
from tests.reporting.samples import drift, report, with_budget

DOWNSTREAM = {"digits": TaskScore("downstream", "exact_match", 0.0, 0.5)}


def test_all_positions_count_the_same() -> None:
    score = drift().all
    assert (score.kl, score.agreement, score.positions) == (pytest.approx(0.004), pytest.approx(0.95), 400)


def test_it_is_kept_in_the_report() -> None:
    text = report(drift=drift()).to_json()
    assert json.loads(text)["drift"]["positions"] == 400
    assert Report.from_json(text).drift == drift()


@pytest.mark.parametrize("score", [(float("nan"), 1.0, 5), (-0.1, 1.0, 5), (0.1, 1.5, 5), (0.1, 1.0, 0)])
def test_impossible_drift_is_refused(score: tuple[float, float, int]) -> None:
    with pytest.raises(DowserError, match="expected a finite KL"):
        DriftScore(*score)


def test_every_form_of_a_report_tells_it() -> None:
    run = report(drift=drift())
    said = "KL 0.004, next token the same at 95.0 % of 400 positions"
    for text in (text_table(run).replace("\n", " "), markdown_page(run), html_page(run), " ".join(notes(run))):
        assert said in text
    assert "| shuffle | 100 | 0.013 | 86.0 % |" in markdown_page(run)


def test_without_upstream_data_it_is_what_is_said_of_forgetting() -> None:
    run = report(tasks=DOWNSTREAM, drift=drift())
    assert "No upstream task was given: this is all that is known of forgetting here." in markdown_page(run)
    assert headline(run) == "ModelDowser: downstream +0.500, KL to the base 0.004"
    assert "No upstream task" not in markdown_page(report(drift=drift()))


def test_where_nothing_is_known_of_forgetting_that_is_said() -> None:
    assert "Nothing is known of forgetting" in html_page(report(tasks=DOWNSTREAM))
    assert "forgetting" not in markdown_page(report())


def test_runs_are_compared_by_it() -> None:
    many = [with_budget(run="a-name", method="HighestImportance", drift=drift()), report()]
    lines = text_comparison(many).splitlines()
    assert lines[0].split()[-2:] == ["KL", "time"]
    assert " 0.004 " in next(line for line in lines if "0.05 of 0.1" in line)
    assert max(map(len, lines)) <= 100


def test_small_numbers_are_not_lost() -> None:
    assert [kl_text(kl) for kl in (-1e-9, 3.14e-5, 0.0031, 1.25)] == ["0", "3.1e-05", "0.0031", "1.2"]
