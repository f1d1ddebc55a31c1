import pytest

from dowser_pl.reporting.table import RULE, markdown_grid, model_name, settings_line, shorten, text_grid, width
from tests.reporting.samples import report


def test_wide_characters_take_two_columns() -> None:
    assert width("\u732b") == 2
    assert width("e\u0301") == 1
    lines = text_grid(("task", "n"), [("\u732b\u732b\u732b", "1"), RULE, ("cat", "22")], "lr").splitlines()
    assert [width(line) for line in lines] == [10, 10, 10, 10, 10]


def test_first_column_gives_way() -> None:
    grid = text_grid(("task", "score"), [("a" * 50, "1.000")], "lr", limit=20)
    assert grid.splitlines()[-1] == "aaaaa...aaaaa  1.000"


def test_shorten() -> None:
    assert shorten("digits", 6) == "digits"
    assert shorten("handwritten", 6) == "ha...n"
    assert shorten("counting/easy/2024/test", 15) == "counti...4/test"
    assert width(shorten("\u732b" * 20, 12)) <= 12
    assert shorten("handwritten", 3) == "..."


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("/data/of/somebody/with/long/paths/models/llava-1.5-7b-hf/", "llava-1.5-7b-hf"),
        ("C:\\somebody\\with\\long\\paths\\models\\llava-1.5-7b-hf", "llava-1.5-7b-hf"),
        (
            "/cache/hub/models--llava-hf--llava-1.5-7b-hf/snapshots/8c85e9a4d6",
            "llava-hf/llava-1.5-7b-hf",
        ),
        ("somewhere/" + "a" * 30 + "/" + "b" * 30 + "-end", "bbbbbbbbbbbbb...bbbbbbbb-end"),
    ],
)
def test_of_a_long_path_the_name_of_the_model_stays(model: str, shown: str) -> None:
    assert model_name(model, 28) == shown
    line = settings_line(report(model="/a/path/" * 20 + model.lstrip("/")), 100)
    assert width(line) <= 100 and line.startswith("update ratio 0.1  \u00b7  learning rate 0.006")
    assert line.endswith(shown[-4:])


def test_markdown_escapes() -> None:
    assert markdown_grid(("a", "b"), [("x|y", "1"), RULE], "lr").splitlines() == [
        "| a | b |",
        "| :--- | ---: |",
        "| x\\|y | 1 |",
    ]
