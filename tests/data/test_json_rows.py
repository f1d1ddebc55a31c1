"""Reading JSON and JSONL."""

import json

import pytest

from dowser_pl.data.formats import read_rows

ROWS = [{"id": "a", "x": 1}, {"x": 2}]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_json_list(tmp_path):
    path = write(tmp_path / "rows.json", json.dumps(ROWS, indent=2))
    assert list(read_rows(path)) == [("rows.json row 1 (id a)", ROWS[0]), ("rows.json row 2", ROWS[1])]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_lines_whatever_the_ending(tmp_path, name):
    path = write(tmp_path / name, "\ufeff\n" + "\n\n".join(map(json.dumps, ROWS)) + "\n")
    assert list(read_rows(path)) == [(f"{name} line 2 (id a)", ROWS[0]), (f"{name} line 4", ROWS[1])]


def test_unicode_line_separators_belong_to_the_text(tmp_path):
    rows = [{"x": "one\u2028two\x85three"}, {"x": "four"}]
    path = write(tmp_path / "rows.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert [row for _, row in read_rows(path)] == rows


def test_empty_file(tmp_path):
    assert list(read_rows(write(tmp_path / "rows.json", " \n"))) == []
    assert list(read_rows(write(tmp_path / "rows.json", "[]"))) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[{"a": 1},\n {"a": }]', "2:8"),
        ('{"a": 1}\n\n{"a": 1,}\n', r"3:\d"),
        ("[1, 2", "1:6"),
        ("hello", "1:1"),
    ],
)
def test_malformed_json_names_line_and_column(tmp_path, text, place):
    with pytest.raises(ValueError, match=rf"rows\.json:{place}: not valid JSON: .*Expected a JSON list"):
        list(read_rows(write(tmp_path / "rows.json", text)))


def test_other_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No data file at nowhere\.json"):
        read_rows("nowhere.json")
    with pytest.raises(ValueError, match=r"rows\.json row 2: expected an object.*got '3'"):
        list(read_rows(write(tmp_path / "rows.json", "[{}, 3]")))
    (tmp_path / "rows.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(ValueError, match=r"not UTF-8 text at byte 8"):
        read_rows(tmp_path / "rows.json")
