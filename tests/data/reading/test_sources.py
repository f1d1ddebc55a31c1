"""Rows of a file that may be left out."""

import pytest

from dowser_pl.data.reading.formats import read_rows
from dowser_pl.data.reading.sources import ParsedRows, Selected, keep_good


def parse(name, row):
    if row["x"] < 0:
        raise ValueError(f"{name}: negative")
    return row["x"]


def test_keep_good(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join(f'{{"x": {x}}}' for x in (1, -2, 3, -4)) + "\n[1]\n{")
    rows = read_rows(path)
    with pytest.raises(ValueError, match="line 2: negative"):
        keep_good(rows, parse, False, "file")
    with pytest.warns(
        UserWarning, match=r"(?s)file: left out 4 of 6 rows.*line 2: neg.*line 4: neg.*line 5: expected an"
    ):
        assert keep_good(rows, parse, True, "file") == [0, 2]
    with pytest.raises(ValueError, match=r"No row is usable. file: left out 1 of 1"):
        keep_good(rows, parse, True, "file", numbers=[1])


def test_rows_of_a_shape_that_nobody_thought_of(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"x": 1}\n{"y": 2}\n{"x": "3"}')
    rows = read_rows(path)
    with pytest.raises(ValueError, match=r"^f\.jsonl line 2: cannot be read: KeyError: 'x'") as caught:
        ParsedRows(rows, parse)[1]
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.warns(UserWarning, match=r"(?s)left out 2 of 3 rows.*line 2: .*line 3: cannot be read: TypeError"):
        assert keep_good(rows, parse, True, "file") == [0]


def test_selected_rows_have_new_numbers(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join(f'{{"x": {x}}}' for x in (1, 22, 333, 4444)))
    rows = read_rows(path)
    some = Selected(ParsedRows(rows, parse), [3, 1])
    assert list(some) == [4444, 22] and len(some) == 2 and some[-1] == 22
    assert some.sizes.tolist() == [11, 10] and some.digest == rows.digest
    with pytest.raises(IndexError):
        some[2]
