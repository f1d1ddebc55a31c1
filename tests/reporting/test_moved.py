"""Where tuned models moved: the line, the JSON and the picture."""

import json

import pytest

from dowser_pl.errors import DowserError
from dowser_pl.reporting.moved import MatrixMove, Moved, moved_text
from dowser_pl.reporting.plots.importance import draw_importance
from dowser_pl.reporting.plots.moved import draw_moved, plot_moved


def moved(scale=1.0, layers=3):
    matrices = [
        MatrixMove(f"m.{layer}.{kind}", layer, kind, scale * (layer + 1) * size, 0.1)
        for layer in range(layers)
        for kind, size in (("self_attn.q_proj", 0.01), ("mlp.up_proj", 0.02))
    ]
    return Moved(matrices, [scale * 0.1 * (layer + 1) for layer in range(layers)])


def test_the_line_names_the_extremes():
    text = moved_text(moved())
    assert text == (
        "moved most: mlp.up_proj of layer 2 (by 0.06 of its size); drifted most: the output of layer 2 (by 0.3)"
    )
    assert moved_text(moved(0.0)) == "no matrix of the decoder moved"
    elsewhere = Moved(moved(0.0).matrices, [0.2, 0.1, 0.1])  # such as in the embeddings
    assert moved_text(elsewhere) == "no matrix of the decoder moved; drifted most: the output of layer 0 (by 0.2)"


def test_it_is_json():
    found = json.loads(json.dumps(moved().to_dict()))
    assert found["drift"] == pytest.approx([0.1, 0.2, 0.3]) and len(found["matrices"]) == 6
    assert found["matrices"][1] == {
        "name": "m.0.mlp.up_proj", "layer": 0, "kind": "mlp.up_proj", "size": 0.02, "share": 0.1
    }  # fmt: skip


def test_every_model_has_a_map_on_one_scale():
    figure = draw_moved({"first": moved(), "second": moved(10.0), "unmoved": moved(0.0)})
    maps = [axes for axes in figure.axes if axes.images]
    assert len(maps) == 3 and len(figure.axes) == 6
    assert all(axes.images[0].get_clim() == pytest.approx((-2.0, -0.2218), abs=1e-3) for axes in maps)
    first = maps[0].images[0].get_array()
    assert first.shape == (3, 2) and 10 ** first[2, 1] == pytest.approx(0.06)
    assert maps[2].images[0].get_array().mask.all()  # nothing is drawn where nothing moved
    assert [text.get_text() for text in maps[0].get_xticklabels()] == ["q_proj", "up_proj"]
    bars = [axes for axes in figure.axes if not axes.images]
    assert len({axes.get_xlim() for axes in bars}) == 1 and len(bars[0].patches) == 3


@pytest.mark.parametrize("number", [1, 2, 5, 9])
def test_any_number_of_models_fits_on_the_page(number):
    figure = draw_moved({f"model {n}": moved(layers=40) for n in range(number)})
    for axes in figure.axes:
        box = axes.get_position()
        assert 0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1


def test_formats(tmp_path):
    plot_moved({"a": moved()}, tmp_path / "moved.svg")
    assert "<svg" in (tmp_path / "moved.svg").read_text()
    with pytest.raises(DowserError, match="expected a name that ends in .png"):
        plot_moved({"a": moved()}, tmp_path / "moved.jpg")


def test_medians_are_drawn_as_powers_of_ten():
    medians = {(0, "attn.q_proj"): 1e-3, (0, "mlp.up_proj"): 0.0, (2, "attn.q_proj"): 10.0}
    (axes,) = draw_importance(medians, "ModelDowser").axes
    shown = axes.images[0].get_array()
    assert shown.shape == (3, 2) and shown[0, 0] == -3 and shown[2, 0] == 1
    assert shown.mask.tolist() == [[False, True], [True, True], [False, True]]
    assert axes.images[0].get_clim() == (-3.0, 1.0)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["q_proj", "up_proj"]
    assert draw_importance({(0, "q_proj"): 0.0}, "Magnitude").axes  # nothing matters
