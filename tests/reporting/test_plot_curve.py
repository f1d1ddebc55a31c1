from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from dowser_pl.reporting import BudgetChoice, CurvePoint, Report, TaskScore, plot_curve
from dowser_pl.reporting.plots.curve import curve_headline, draw_curve_page, panels
from dowser_pl.reporting.plots.plane import draw_part, part_of, tuned_place
from dowser_pl.reporting.plots.style import add_axes, new_figure
from tests.reporting.samples import report, with_budget, with_curve, with_points

RATIOS = [0, 0.0001, 0.001, 0.01, 0.02, 0.03, 0.05, 0.1]
CLOSE = with_points(RATIOS, [0, 0, 0, 0.5, 0.5, 0.502, 0.505, 0.51], [0.99] * 3 + [0.985, 0.985, 0.984, 0.984, 0.983])
CIDER = with_points([0, 0.01, 0.05, 0.1, 0.2], [0.3, 0.8, 1.05, 1.12, 1.15], [0.61, 0.605, 0.59, 0.56, 0.5])
MANY = with_points(
    [i / 100 for i in range(21)], [1 - (1 - i / 20) ** 3 for i in range(21)], [0.9 - i**2 / 1000 for i in range(21)]
)
SAME = with_points([0, 0.05, 0.1], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
WILD = with_points(
    [0, 0.25, 0.5, 0.75, 1],
    [0.2, 0.6, 0.5, 0.7, 0.1],
    [0.8, 0.85, 0.3, 0.6, 0.02],
    budget=BudgetChoice(0.1, 0.25, True, {0.25: -0.02, 0.5: 0.5, 0.75: 0.2, 1: 0.8}),
)
CURVES = {"close": CLOSE, "cider": CIDER, "many": MANY, "same": SAME, "wild": WILD, "lost": with_budget(kept=False)}


def of_role(run: Report, role: str) -> Report:
    names = [name for name, task in run.tasks.items() if task.role == role]
    points = [CurvePoint(point.update_ratio, {name: point.scores[name] for name in names}) for point in run.curve]
    return report(tasks={name: run.tasks[name] for name in names}, curve=points, budget=run.budget)


def extent(figure: Figure, text: Text) -> Bbox:
    """Where a text stands, in pixels, without the line that leads to it."""
    return Text.get_window_extent(text, FigureCanvasAgg(figure).get_renderer())


def texts(figure: Figure) -> list[Text]:
    """All that is written and not empty: titles, labels, scales."""
    found = list(figure.texts)
    for axes in figure.axes:
        found += [*axes.texts, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
    return [text for text in found if text.get_text()]


def test_png_is_a_slide(tmp_path: Path) -> None:
    plot_curve(with_budget(), tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size == (2666, 1500)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CURVES)
def test_nothing_runs_into_anything_or_out_of_the_picture(name: str) -> None:
    figure = draw_curve_page(CURVES[name])
    figure.draw(FigureCanvasAgg(figure).get_renderer())
    boxes = [(extent(figure, text), text.get_text()) for text in texts(figure)]
    for box, text in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    for (box, text), (other, other_text) in combinations(boxes, 2):
        assert not box.overlaps(other), (text, other_text)


@pytest.mark.parametrize("name", CURVES)
def test_every_point_is_labelled_beside_and_not_on_a_point(name: str) -> None:
    run = CURVES[name]
    figure = draw_curve_page(run)
    axes = figure.axes[-1]
    labels = [text for text in axes.texts if not text.get_text().startswith("H ")]
    assert sorted(text.get_text() for text in labels) == sorted(label_of(run, point) for point in run.curve)
    points = axes.transData.transform([(means.downstream, means.upstream) for means in run.curve_means])
    for text in labels:
        box = extent(figure, text)
        assert not any(box.contains(*point) for point in points), text.get_text()


def label_of(run: Report, point: CurvePoint) -> str:
    names = ["base model"] if point.update_ratio == 0 else []
    names += ["knee"] if point.update_ratio == run.knee else []
    names += ["chosen"] if run.budget and point.update_ratio == run.budget.update_ratio else []
    return (", ".join(names) + (f" {point.update_ratio:g}" if point.update_ratio else "")).strip()


def test_ring_and_dashed_line_of_the_knee() -> None:
    lines = [line.get_xydata().tolist() for line in draw_curve_page(with_curve()).axes[-1].lines]
    assert lines.count([[0.25, 0.75]]) == 2
    assert [[0.0, 0.75], [0.5, 0.5]] in lines
    assert [[0.0, 0.75], [0.25, 0.75], [0.5, 0.5]] in lines
    assert [[0.5, 0.5], [0.5, 0.5]] not in [line.get_xydata().tolist() for line in draw_curve_page(SAME).axes[-1].lines]


def test_notes() -> None:
    def notes(run: Report) -> str:
        return " ".join(text.get_text() for text in draw_curve_page(run).texts)

    assert "Ring: the knee" in notes(with_curve()) and "Budget" not in notes(with_curve())
    assert "Ring" not in notes(SAME)
    assert "which lost 0.013 on data set apart to choose on, not the data of this report." in notes(with_budget())
    assert "WARNING: the budget is not kept: at most 0.02" in notes(with_budget(kept=False))


def test_headline_states_the_result() -> None:
    assert curve_headline(with_curve()) == "Knee at update ratio 0.05: downstream +0.250, upstream 0.000"
    assert curve_headline(with_budget()) == "Chosen update ratio 0.05: downstream +0.250, upstream 0.000"
    assert curve_headline(WILD) == "Chosen update ratio 0.25: downstream +0.400, upstream +0.050"
    assert curve_headline(with_budget(kept=False)).startswith("Budget not kept, update ratio 0.05: downstream")
    assert curve_headline(SAME) == "What every update ratio learns and keeps"
    elsewhere = with_curve(budget=BudgetChoice(0.02, 0.07, True, {0.07: 0.01}))
    assert curve_headline(elsewhere) == "Chosen update ratio 0.07"


def test_what_the_panels_show() -> None:
    learnt, lost = panels(with_budget())
    assert [list(line.values) for line in learnt.lines] == [[0.0, 0.25, 0.5], [0.0, pytest.approx(0.375), 0.5]]
    assert [list(line.values) for line in lost.lines] == [[0.0, 0.0, 0.25], [None, 0.013, 0.25]]
    assert lost.limit == 0.02
    assert [line.apart for line in lost.lines] == [False, True]
    assert len(panels(with_curve())[1].lines) == 1 and panels(with_curve())[1].limit is None


@pytest.mark.parametrize(("role", "heading"), [("downstream", "Learnt"), ("upstream", "Forgotten")])
def test_one_role_has_no_plane(role: str, heading: str) -> None:
    figure = draw_curve_page(of_role(with_budget(), role))
    assert len(figure.axes) == 1
    found = {text.get_text() for text in figure.texts}
    assert heading in found and "From the base model to the trained ratio" not in found


def test_tuned_model() -> None:
    assert tuned_place(with_curve()) == 2
    assert tuned_place(with_budget()) == 1
    assert tuned_place(with_curve(budget=BudgetChoice(0.02, 0.07, True, {0.07: 0.01}))) == 2


@pytest.mark.parametrize("run", [report(), report(tasks={}, curve=[CurvePoint(0, {}), CurvePoint(0.1, {})])])
def test_nothing_to_draw(run: Report, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no curve to draw"):
        plot_curve(run, tmp_path / "curve.png")


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a name that ends in \.png, \.pdf, \.svg"):
        plot_curve(with_curve(), tmp_path / "curve.gif")


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ((0.0, 0.82), (0.0, 1.0)),
        ((0.99, 0.93), (0.9, 1.0)),
        ((0.61, 0.5), (0.45, 0.65)),
        ((0.3, 1.15), (0.2, 1.4)),
        ((0.5, 0.5), (0.44, 0.56)),
        ((0.0, 0.0), (0.0, 0.06)),
        ((2.0, 6.5), (1.0, 7.0)),
    ],
)
def test_part_of_an_axis(values: tuple[float, ...], part: tuple[float, float]) -> None:
    low, high = part_of(values)
    assert (low, high) == pytest.approx(part)
    assert low <= min(values) and high >= max(values)


def test_curves_of_equal_h_score_are_named_where_they_leave() -> None:
    axes = add_axes(new_figure(5, 5), 1, 1, 3, 3)
    draw_part(axes, (0.8, 1.0), (0.4, 1.0))
    names = {text.get_text(): text.xy for text in axes.texts}
    # y = level x / (2 x - level): 0.7 x / (2 x - 0.7) is 0.622 at 0.8 and 0.538 at 1; 0.9 leaves at the top, 9 / 11
    assert names["H 0.7"] == (1.0, pytest.approx(0.7 / 1.3))
    assert names["H 0.9"] == (pytest.approx(0.9 / 1.1), 1.0)
    assert sorted(names) == ["H 0.6", "H 0.7", "H 0.8", "H 0.9"]


def test_scores_far_above_one() -> None:
    tasks = {"d": TaskScore("downstream", "cider", 12.0, 30.0), "u": TaskScore("upstream", "cider", 25.0, 20.0)}
    points = [CurvePoint(0, {"d": 12.0, "u": 25.0}), CurvePoint(0.1, {"d": 30.0, "u": 20.0})]
    axes = draw_curve_page(report(tasks=tasks, curve=points)).axes[-1]
    assert axes.get_xlim() == (10.0, 35.0) and axes.get_ylim() == (19.0, 26.0)
