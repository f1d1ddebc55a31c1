"""Pictures of a bench in which many methods lie close together."""

from itertools import combinations
from statistics import stdev

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dowser_pl.bench.cells import Cell, Group
from dowser_pl.bench.grid import Choice
from dowser_pl.bench.plots import crowd, draw_trade_off
from dowser_pl.bench.records import Record
from dowser_pl.bench.results import Comparison, MethodResult, Point
from dowser_pl.bench.settings import Entry
from dowser_pl.bench.small_multiples import draw_depths, draw_tried
from dowser_pl.reporting import TaskScore
from dowser_pl.reporting.plots.style import WIDTH

MEANS = [(0.833, 0.969), (0.860, 0.931), (0.827, 0.963), (0.840, 0.943), (0.850, 0.925), (0.827, 0.949), (0.847, 0.923)]
MEANS += [(0.847, 0.923), (0.827, 0.939), (0.810, 0.953), (0.817, 0.942), (0.843, 0.907), (0.877, 0.860)]
MEANS += [(0.817, 0.926), (0.793, 0.910), (0.847, 0.559)]  # the last far off


def record(downstream, upstream):
    tasks = {
        "digits": TaskScore("downstream", "exact_match", 0.0, downstream),
        "old": TaskScore("upstream", "exact_match", 0.989, upstream),
    }
    return Record(tasks, {"fit": 2.0}, None, 0.1, None, 3)


def comparison(seeds=3, depth=None, means=MEANS):
    group, methods = Group("shipped", "digits", depth), []
    for number, (downstream, upstream) in enumerate(means):
        name, setting = f"Method{number:02d}OfLongName", (("lr", 0.0025), ("update_ratio", 0.1))
        records = [record(downstream + 0.01 * seed, upstream - 0.01 * seed) for seed in range(seeds)]
        tried = [(0.001, record(downstream - 0.2, upstream)), (0.0025, record(downstream, upstream)), (0.005, None)]
        curve = [
            Point(Cell(group, name, (("lr", rate), ("update_ratio", 0.1)), 0, "validation"), found, None)
            for rate, found in tried
        ]
        entry = Entry(name, (), {}, (), (setting,), "Full" if number % 4 == 0 else None)
        methods.append(MethodResult(entry, Choice(setting, {}, 0), curve, list(range(seeds)), records, {}))
    return Comparison(group, methods)


def drawn_texts(figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    found = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    return [(text.get_window_extent(renderer), text.get_text()) for text in found if text.get_text()]


FIGURES = {
    "trade-off": lambda: draw_trade_off(comparison()),
    "few": lambda: draw_trade_off(comparison(means=MEANS[:3])),
    "tried": lambda: draw_tried(comparison()),
    "depths": lambda: draw_depths([comparison(), comparison(depth=2), comparison(depth=4)]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_method_is_named_and_no_text_covers_another(name):
    figure = FIGURES[name]()
    texts = drawn_texts(figure)
    shown = " ".join(text for _, text in texts)
    assert all(f"{number:02d}OfLong" in shown for number in range(3 if name == "few" else 16))
    for (box, text), (other_box, other_text) in combinations(texts, 2):
        overlap = box.intersection(box, other_box)
        assert overlap is None or min(overlap.width, overlap.height) < 2, (text, other_text)
    for box, text in texts:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1, text


@pytest.mark.parametrize("name", ["trade-off", "tried"])
def test_sixteen_methods_fit_a_slide(name):
    assert tuple(FIGURES[name]().get_size_inches()) == pytest.approx((WIDTH, 7.5), abs=0.02)


def test_bars_are_the_deviation_over_seeds():
    figure = draw_trade_off(comparison())
    downstream = figure.axes[1]
    first = next(line for line in downstream.lines if line.get_marker() == "|" and line.get_ydata()[0] == 1)
    mean, std = 0.833 + 0.01, stdev([0.0, 0.01, 0.02])
    assert list(first.get_xdata()) == pytest.approx([mean - std, mean + std])
    assert any("standard deviation over 3 seeds" in text for _, text in drawn_texts(figure))


def test_one_seed_has_no_bars():
    figure = draw_trade_off(comparison(seeds=1))
    assert not any(line.get_marker() == "|" for axes in figure.axes for line in axes.lines)
    assert not any("deviation" in text for _, text in drawn_texts(figure))


def test_what_lies_far_off_does_not_press_the_others_together():
    assert crowd([upstream for _, upstream in MEANS]) == [True] * 15 + [False]
    assert all(crowd([0.5, 0.5, 0.5])) and all(crowd([0.4, 0.41]))
    figure = draw_trade_off(comparison())
    upstream = figure.axes[2]
    assert upstream.get_xlim()[0] > 0.7
    assert [line.get_marker() for line in upstream.lines if line.get_marker() in "<>"] == ["<"]
    assert any("outside: 16 Method15OfLongName 0.86, 0.55" in text for _, text in drawn_texts(figure))


def test_nothing_has_finished():
    empty = Comparison(Group("shipped", "digits", None), [])
    for figure in (draw_trade_off(empty), draw_tried(empty), draw_depths([empty])):
        assert drawn_texts(figure)
