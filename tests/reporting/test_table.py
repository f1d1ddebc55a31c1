import sys

import pytest

from dowser_pl.reporting import Counts, TaskScore, markdown_page, markdown_table, text_table
from tests.reporting.samples import report, with_budget, with_tasks

EXPECTED = """\
ModelDowser, update ratio 0.1, learning rate 0.006, 1,500 steps, seed 3, embedded:world

task             role        metric       before  after  change
---------------------------------------------------------------
digits           downstream  exact_match   0.000  0.500  +0.500
colour           upstream    exact_match   1.000  0.750  -0.250
ocr              upstream    vqa           0.500  0.250  -0.250
---------------------------------------------------------------
upstream mean                              0.750  0.500  -0.250
downstream mean                            0.000  0.500  +0.500
H-score                                    0.000  0.500  +0.500

frozen entries          900, changed 0
trainable entries       100, changed 97 (97.0 %)
frozen content          sha256 abababababababab
time                    probe 6.1 s, fit 1 min 12 s, evaluate 1 h 02 min
peak memory             512.0 MiB
overlap with magnitude  0.81"""


def test_text_table() -> None:
    assert text_table(report()) == EXPECTED


def test_fits_a_hundred_columns() -> None:
    lines = text_table(with_tasks(40)).splitlines()
    assert max(map(len, lines)) <= 100
    assert any("a very long name of a captioning" in line for line in lines)


def test_missing_role_is_a_dash() -> None:
    table = text_table(report(tasks={"digits": TaskScore("downstream", "exact_match", 0.0, 0.5)}))
    assert "upstream mean                                  -      -       -" in table
    assert "H-score                                        -      -       -" in table


def test_changed_frozen_entries_are_not_overlooked() -> None:
    assert "changed 3 (WARNING" in text_table(report(frozen=Counts(900, 3)))


def test_markdown_has_the_same_numbers() -> None:
    table = markdown_table(report())
    assert "| digits | downstream | exact_match | 0.000 | 0.500 | +0.500 |" in table
    assert "| **H-score** |  |  | **0.000** | **0.500** | **+0.500** |" in table
    assert "- peak memory: 512.0 MiB" in table
    assert "benchmark \\| test" in markdown_table(with_tasks(2))


def test_page() -> None:
    page = markdown_page(report(), "report.png")
    assert page.startswith("# quickstart\n\n**ModelDowser**, update ratio 0.1")
    assert "](report.png)" in page
    assert page.endswith("Versions: torch 2.13.0\n")
    assert "![" not in markdown_page(report())


@pytest.mark.parametrize(("columns", "most"), [("80", 80), ("300", 100), ("20", 80)])
def test_a_report_fits_the_terminal(columns, most, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines = text_table(with_budget()).splitlines()
    assert max(map(len, lines)) <= most


def test_what_goes_to_a_file_is_as_wide_as_ever(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert text_table(report()) == EXPECTED
