"""Which rows are tried before anything long begins."""

import pytest
from PIL import Image

from dowser_pl.data import Conversation
from dowser_pl.data.checking import rows_to_check
from dowser_pl.data.images import ImageBytes, ImageFile
from dowser_pl.data.reading.formats import read_rows
from dowser_pl.data.reading.sources import ParsedRows
from tests.data.builders import IMAGE, turn


def row(text="a", images=()):
    return Conversation("r", [turn("user", *[IMAGE] * len(images), text), turn("assistant", "b")], list(images))


@pytest.fixture
def image(tmp_path):
    def make(width, height):
        path = tmp_path / f"{width}x{height}.png"
        Image.new("L", (width, height)).save(path)
        return ImageFile(path)

    return make


def test_the_first_and_the_extremes(image, tmp_path):
    rows = [row(images=[image(20, 20)]) for _ in range(50)]
    rows[11] = row("long " * 99, [image(20, 20)])
    rows[22] = row(images=[image(20, 20)] * 7)
    rows[33] = row(images=[image(300, 300)])
    rows[44] = row(images=[image(900, 2)])
    (tmp_path / "no.png").write_bytes(b"no picture")
    rows[5] = row(images=[ImageFile(tmp_path / "no.png")])
    rows[6] = row(images=[ImageFile(tmp_path / "gone.png")])
    rows[7] = row(images=[ImageBytes(b"GIF89a")])
    chosen = rows_to_check(rows, "first", [3, 1])
    assert chosen[:2] == [3, 1] and {5, 6, 7, 11, 22, 33, 44} <= set(chosen)
    assert len(chosen) == len(set(chosen)) < 15
    assert rows_to_check(rows, "none", [3]) == []
    assert rows_to_check(rows, "all", [3]) == list(range(50))


def test_a_large_file_is_not_read_for_it():
    looked = []

    class Many(list):
        def __getitem__(self, number):
            looked.append(number)
            return row("x")

        def __len__(self):
            return 1_000_000

    assert len(rows_to_check(Many(), "first", range(16))) < 30
    assert len(looked) < 1100


def test_the_longest_row_of_a_large_file_is_found(tmp_path):
    lines = [f'{{"x": {i}}}' for i in range(20_000)]
    lines[12_345] = '{"x": "' + "long " * 50 + '"}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = ParsedRows(read_rows(tmp_path / "a.jsonl"), lambda name, row: globals()["row"](str(row["x"])))
    assert 12_345 in rows_to_check(rows, "first", [])


def test_a_row_that_cannot_even_be_read_is_checked(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{"x": \n{"x": 3}')
    rows = ParsedRows(read_rows(tmp_path / "a.jsonl"), lambda name, row: globals()["row"]())
    assert 1 in rows_to_check(rows, "first", [])
