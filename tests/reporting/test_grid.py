from dowser_pl.reporting.table import RULE, markdown_grid, shorten, text_grid, width


def test_wide_characters_take_two_columns() -> None:
    assert width("\u732b") == 2
    assert width("e\u0301") == 1
    lines = text_grid(("task", "n"), [("\u732b\u732b\u732b", "1"), RULE, ("cat", "22")], "lr").splitlines()
    assert [width(line) for line in lines] == [10, 10, 10, 10, 10]


def test_first_column_gives_way() -> None:
    grid = text_grid(("task", "score"), [("a" * 50, "1.000")], "lr", limit=20)
    assert grid.splitlines()[-1] == "a" * 10 + "...  1.000"


def test_shorten() -> None:
    assert shorten("digits", 6) == "digits"
    assert shorten("handwritten", 6) == "han..."


def test_markdown_escapes() -> None:
    assert markdown_grid(("a", "b"), [("x|y", "1"), RULE], "lr").splitlines() == [
        "| a | b |",
        "| :--- | ---: |",
        "| x\\|y | 1 |",
    ]
