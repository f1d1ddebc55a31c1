"""How scores of which less is better enter means, tables and pictures."""

import json
from pathlib import Path

import pytest

from dowser_pl.reporting import CurvePoint, Report, TaskScore, comparable, markdown_table, plot_report, text_table
from dowser_pl.reporting.html import score_table
from dowser_pl.reporting.plots.run import blocks
from tests.reporting.samples import report


def test_the_mapping_by_role():
    assert comparable("vqa", "upstream", 0.5, 0.25) == 0.25
    assert [comparable("perplexity", "upstream", 20.0, each) for each in (10.0, 20.0, 40.0, 1e9)] == [1, 1, 0.5, 2e-8]
    assert [comparable("perplexity", "downstream", 20.0, each) for each in (5.0, 20.0, 40.0)] == [0.75, 0, 0]


@pytest.fixture
def measured():
    tasks = {
        "names": TaskScore("downstream", "exact_match", 0.0, 0.5),
        "letters": TaskScore("downstream", "perplexity", 8.0, 2.0),
        "prose": TaskScore("upstream", "perplexity", 20.0, 40.0),
        "icons": TaskScore("upstream", "choice_likelihood", 0.5, 0.25),
    }
    return report(tasks=tasks)


def test_means_and_h_score(measured):
    assert (measured.upstream.before, measured.upstream.after) == (0.75, 0.375)
    assert (measured.downstream.before, measured.downstream.after) == (0.0, 0.625)
    assert measured.h_score.after == pytest.approx(2 * 0.375 * 0.625)
    assert measured.tasks["prose"].change == 20 and measured.tasks["prose"].gain == -20
    assert measured.tasks["prose"].lost == 0.5 and measured.tasks["icons"].lost == 0.25


def test_the_curve_counts_them_alike(measured):
    scores = {name: task.after for name, task in measured.tasks.items()}
    curve = [CurvePoint(0.0, {name: task.before for name, task in measured.tasks.items()}), CurvePoint(0.1, scores)]
    means = report(tasks=measured.tasks, curve=curve).curve_means
    assert (means[0].upstream, means[1].upstream, means[1].downstream) == (0.75, 0.375, 0.625)


def test_it_is_read_again(measured):
    assert Report.from_json(measured.to_json()) == measured
    assert json.loads(measured.to_json())["tasks"]["prose"]["after"] == 40.0


def test_tables_and_pictures_show_the_perplexity_and_what_is_better(measured, tmp_path: Path):
    for table in (text_table(measured), markdown_table(measured)):
        (line,) = (line for line in table.splitlines() if "prose" in line)
        assert "perplexity, lower is better" in line
        assert "20.000" in line and "40.000" in line and "+20.000" in line
    page = score_table(measured)
    assert '<span class="forgotten">+20.000</span>' in page
    assert '<span class="gained">\u22126.000</span>' in page
    assert [each.heading for each in blocks(measured)][1] == "Downstream: what it learnt (perplexity, lower is better)"
    plot_report(measured, tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000
