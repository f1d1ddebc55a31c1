import pytest

from dowser_pl.reporting import TaskScore, markdown_comparison, text_comparison
from tests.reporting.samples import report

FULL = {"method": "Full", "update_ratio": 1.0, "run": "full"}
EXPECTED = """\
run           method       ratio     lr  steps  downstream  upstream   drop      H         time
-----------------------------------------------------------------------------------------------
0 base                                               0.000     0.750         0.000
-----------------------------------------------------------------------------------------------
1 quickstart  ModelDowser    0.1  0.006   1500       0.500     0.500  0.250  0.500  1 h 03 min
2 full        Full             1  0.006   1500       0.500     0.500  0.250  0.500  1 h 03 min

task    0 base      1      2
----------------------------
digits   0.000  0.500  0.500
colour   1.000  0.750  0.750
ocr      0.500  0.250  0.250"""


def test_text() -> None:
    lines = [line.split() for line in text_comparison([report(), report(**FULL)]).splitlines()]
    expected = [line.split() for line in EXPECTED.splitlines()]
    assert [cells for cells in lines if not set("".join(cells)) <= {"-"}] == [
        cells for cells in expected if not set("".join(cells)) <= {"-"}
    ]


def test_fits_a_hundred_columns() -> None:
    many = [report(run=f"run-{number}-with-quite-a-long-name-of-its-own") for number in range(14)]
    assert max(map(len, text_comparison(many).splitlines())) <= 100


def test_drop_is_what_was_lost() -> None:
    gained = {"a": TaskScore("upstream", "vqa", 0.5, 0.75), "b": TaskScore("downstream", "vqa", 0.5, 0.5)}
    assert " -0.250 " in text_comparison([report(tasks=gained)])


def test_other_tasks_are_pointed_out() -> None:
    fewer = report(tasks={"digits": TaskScore("downstream", "exact_match", 0.0, 0.5)})
    assert "Run 2 has other tasks than run 1" in text_comparison([report(), fewer])


def test_other_base_scores_are_pointed_out() -> None:
    other = dict(report().tasks) | {"ocr": TaskScore("upstream", "vqa", 0.6, 0.25)}
    assert "Run 2 starts from other scores" in markdown_comparison([report(), report(tasks=other)])


def test_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="no report"):
        text_comparison([])
