import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from dowser_pl.reporting import Questions, Report, TaskScore, plot_comparison, plot_report
from dowser_pl.reporting.intervals import Interval
from dowser_pl.reporting.plots.plane import curve_step
from dowser_pl.reporting.plots.run import blocks, draw_report, headline, scale_end
from dowser_pl.reporting.plots.runs import draw_comparison
from dowser_pl.reporting.plots.style import GAIN, LOSS, MUTED, change_colour
from tests.reporting.samples import report, with_tasks

ONE = {"digits": TaskScore("downstream", "exact_match", 0.0, 0.5)}


def extents(figure: Figure) -> list[tuple[Bbox, str]]:
    """Where each text of a figure stands, in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    return [(text.get_window_extent(renderer), text.get_text()) for text in figure.texts]


def texts(run: Report) -> set[str]:
    return {text.get_text() for text in draw_report(run).texts}


def test_png_is_a_slide(tmp_path: Path) -> None:
    plot_report(report(), tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as image:
        assert image.size == (2666, 1500)
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tasks", [{}, ONE, report().tasks, with_tasks(39).tasks])
def test_every_task_is_drawn_inside_the_figure(tasks: dict[str, TaskScore]) -> None:
    figure = draw_report(report(tasks=tasks))
    found = {text.get_text()[:10] for text in figure.texts}
    assert {name[:10] for name in tasks} <= found
    for box, text in extents(figure):
        assert box.x0 >= 0 and box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text


def test_numbers_do_not_run_into_each_other() -> None:
    for (box, text), (other_box, other_text) in combinations(extents(draw_report(with_tasks(39))), 2):
        assert not box.overlaps(other_box), (text, other_text)


def asked(run: Report) -> Report:
    """The same, of which 150 questions a task are known; a tenth of each was gained and a fifth forgotten."""
    questions = {name: Questions(150, 15, 30, 0.3) for name in run.tasks}
    return replace(run, questions=questions)


LONG = report(method="AMethodOfSomebodyWithALongName" * 2, model="/a/long/path" * 20 + "/llava-1.5-7b-hf")


@pytest.mark.parametrize("run", [report(), with_tasks(39), report(tasks=ONE), LONG], ids=["few", "many", "one", "long"])
def test_with_intervals_too(run: Report) -> None:
    figure = draw_report(asked(run))
    for (box, text), (other_box, other_text) in combinations(extents(figure), 2):
        assert not box.overlaps(other_box), (text, other_text)
    for box, text in extents(figure):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1, text


def test_what_intervals_say() -> None:
    run = report(questions={name: Questions(150, 0, 45, 0.3) for name in report().tasks})
    low, high = run.interval("colour", "change")
    assert f"\u2212{-low:.2f} \u2026 \u2212{-high:.2f}" in texts(run)
    assert any("95 % intervals for n = 150 questions" in text for text in texts(run))
    assert not any("95 %" in text for text in texts(report()))


def test_a_change_that_chance_may_have_made_is_grey() -> None:
    assert change_colour(-0.02, Interval(-0.05, 0.01)) == change_colour(0.0) == MUTED
    assert change_colour(-0.02, Interval(-0.05, -0.01)) == change_colour(-0.02) == LOSS
    assert change_colour(0.02, Interval(0.01, 0.05)) == GAIN


def test_the_plane_is_cut_where_points_are_close() -> None:
    close = report(
        tasks={"new": TaskScore("downstream", "vqa", 0.5, 0.6), "old": TaskScore("upstream", "vqa", 0.9, 0.85)}
    )
    far = report()
    planes = [next(axes for axes in draw_report(run).axes if axes.get_xlabel()) for run in (close, far)]
    assert planes[0].get_xlim()[0] > 0.4 and planes[0].child_axes, "with the whole beside it"
    assert planes[1].get_xlim() == planes[1].get_ylim() == (0, 1) and not planes[1].child_axes


def test_the_h_score_is_explained() -> None:
    assert any("harmonic mean" in text for text in texts(report()))


def test_headline_states_the_result() -> None:
    assert headline(report()) == "ModelDowser: downstream +0.500, upstream \u22120.250"
    assert headline(report(tasks=ONE)) == "ModelDowser: downstream +0.500"
    assert headline(report(tasks={})) == "ModelDowser"


def test_cider_has_a_scale_of_its_own() -> None:
    heads = [(part.heading, part.limit, len(part.tasks)) for part in blocks(with_tasks(6))]
    assert heads == [
        ("Downstream: what it learnt", 1.0, 2),
        ("Upstream: what it kept", 1.0, 4),
        ("Upstream: what it kept (cider)", 1.5, 1),
    ]
    assert "upstream mean 0.704 \u2192 0.580" in texts(with_tasks(6))


def test_largest_gain_first() -> None:
    names = [name for part in blocks(with_tasks(6)) for name, _ in part.tasks]
    assert names[:2] == ["task 6", "task 3"]


@pytest.mark.parametrize(("top", "end"), [(0.3, 1), (1.01, 1.5), (1.5, 1.5), (9.2, 10), (23, 30)])
def test_scale_end(top: float, end: float) -> None:
    assert scale_end(top) == end


@pytest.mark.parametrize("best", [1, 1.3, 6.5, 30, 900])
def test_at_most_four_curves(best: float) -> None:
    assert 1 <= sum(number * curve_step(best) < best for number in range(1, 20)) <= 4


def test_comparison(tmp_path: Path) -> None:
    runs = [report(run=f"run {number}") for number in range(12)]
    plot_comparison([*runs, report(tasks=ONE)], tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.size[0] == 2666


def test_runs_in_one_place_are_all_seen() -> None:
    figure = draw_comparison([report(run=f"run {number}") for number in range(5)])
    plane = next(axes for axes in figure.axes if axes.get_xlabel())
    numbers = [text for text in plane.texts if text.get_text() in set("012345") and text.get_text()]
    assert sorted(text.get_text() for text in numbers) == list("012345")
    places = [plane.transData.transform(text.xy) * 72 / figure.dpi for text in numbers]
    assert all(math.dist(one, other) > 15 for one, other in combinations(places, 2))


def test_comparison_needs_both_roles(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no trade-off to plot"):
        plot_comparison([report(tasks=ONE)], tmp_path / "c.png")


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a name that ends in \.png, \.pdf, \.svg"):
        plot_report(report(), tmp_path / "report.gif")
