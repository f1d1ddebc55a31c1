"""Rows of a file that may be left out."""

import pytest

from dowser_pl.data.formats import read_rows
from dowser_pl.data.sources import keep_good


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
