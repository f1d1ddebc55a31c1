"""Reading JSON and JSONL."""

import gc
import gzip
import json
import pickle
import tempfile
import tracemalloc

import pytest

from dowser_pl.data.reading.formats import read_rows

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


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz", "rows.jsonl"])  # told apart by content
def test_compressed_lines(tmp_path, name):
    text = "\n" + "\n\n".join(map(json.dumps, ROWS)) + "\n"
    (tmp_path / name).write_bytes(gzip.compress(text.encode("utf-8-sig")))
    rows = read_rows(tmp_path / name)
    assert list(rows) == [(f"{name} line 2 (id a)", ROWS[0]), (f"{name} line 4", ROWS[1])]
    assert rows[1] == rows[-1] and rows[0][1] == ROWS[0]
    again = pickle.loads(pickle.dumps(rows))
    assert list(again) == list(rows)


def test_a_compressed_list(tmp_path):
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    assert list(read_rows(tmp_path / "rows.json.gz")) == [
        ("rows.json.gz row 1 (id a)", ROWS[0]),
        ("rows.json.gz row 2", ROWS[1]),
    ]


def test_what_was_unpacked_goes_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"x": 1}\n{"x": 2'))
    rows = read_rows(tmp_path / "rows.jsonl.gz")
    copy = pickle.loads(pickle.dumps(rows))  # as a worker has it
    assert rows[0][1] == copy[0][1] == {"x": 1}
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz:2:\d+: not valid JSON"):
        rows[1]
    del copy
    gc.collect()
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    del rows
    gc.collect()
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("change", [lambda data: data[:-10], lambda data: data[:40] + b"\0\0\0\0" + data[44:]])
def test_a_damaged_compressed_file(tmp_path, monkeypatch, change):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    random = bytes(range(256)).hex()
    data = gzip.compress("\n".join(json.dumps({"x": f"{i}{random}"}) for i in range(9999)).encode())
    (tmp_path / "rows.jsonl.gz").write_bytes(change(data))
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: the compressed file is damaged or incomplete"):
        read_rows(tmp_path / "rows.jsonl.gz")
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1}\n' + '{"a": ' * 100_000 + "1" + "}" * 100_000])
def test_rows_nested_beyond_the_parser(tmp_path, text):
    """Named like any bad row, and in a file of lines only the one."""
    with pytest.raises(ValueError, match=r"rows\.json:[12]: lists or objects are nested more deeply"):
        list(read_rows(write(tmp_path / "rows.json", text)))
    if text.startswith("{"):
        assert read_rows(tmp_path / "rows.json")[0][1] == {"a": 1}


def test_bytes_that_are_no_text_are_of_one_line(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n{"a": 2}')
    rows = read_rows(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not UTF-8 text at byte 7"):
        rows[1]
    assert (rows[0][1], rows[2][1]) == ({"a": 1}, {"a": 2})


@pytest.mark.parametrize("is_list", [False, True])
def test_rows_take_little_memory(tmp_path, monkeypatch, is_list):
    monkeypatch.setattr("dowser_pl.data.reading.json_rows._BLOCK", 1 << 14)
    row = json.dumps({"x": "y" * 1000})
    path = write(tmp_path / "rows.json", f"[{','.join([row] * 2000)}]" if is_list else f"{row}\n" * 2000)
    tracemalloc.start()
    rows = read_rows(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert len(pickle.dumps(rows)) < 60_000 < path.stat().st_size / 30


ELEMENTS = [1, 123456, -1.5e-7, True, None, "", 'a "]," [\\', "éßш水🙂", [], {}, [[1, {"a": [2]}], "]"], {"水": "},{"}]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 8, 64, 10_000])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_read_the_same_in_pieces_of_any_size(tmp_path, monkeypatch, block, indent):
    monkeypatch.setattr("dowser_pl.data.reading.json_rows._BLOCK", block)
    for number, text in enumerate([
        json.dumps(ELEMENTS, ensure_ascii=False, indent=indent),
        json.dumps(ELEMENTS[::-1], indent=indent).replace("\n", "\r\n"),
        "\ufeff \n" + json.dumps(ELEMENTS, indent=indent) + " \n\t",
        f" [ {json.dumps(ELEMENTS[-1])} ] ",
    ]):  # fmt: skip
        path = tmp_path / f"{number}.json"
        path.write_bytes(text.encode())
        rows = read_rows(path)
        assert [rows.entry(i)[1] for i in range(len(rows))] == json.loads(text.removeprefix("\ufeff"))
        pieces = [path.read_bytes()[a : a + n] for a, n in zip(rows._starts, rows.sizes, strict=True)]
        assert all(piece == piece.strip() for piece in pieces)


@pytest.mark.parametrize("block", [1, 7, 10_000])
@pytest.mark.parametrize(
    "text", ["[1,]", "[", "[1", "[1 2]", "[,1]", '["a]', "[1]]", "[1] 2", "[1, tru]", '[{"a": 1]', "[1,,2]", "[\xff]"]
)
def test_what_is_no_list_is_said_in_pieces_of_any_size(tmp_path, monkeypatch, text, block):
    monkeypatch.setattr("dowser_pl.data.reading.json_rows._BLOCK", block)
    path = tmp_path / "rows.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"rows\.json:1(:\d+)?: not "):
        read_rows(path)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"x": 1}\n')
    rows = read_rows(path)
    assert rows[0][1] == {"x": 1}
    write(path, '{"x": 1, "y": 2}\n')
    with pytest.raises(OSError, match=r"rows\.jsonl was changed while it was being read"):
        rows[0]


def test_the_digest_is_of_the_rows(tmp_path):
    one, same = (read_rows(write(tmp_path / name, '{"x": 1}\n')) for name in ("a.jsonl", "b.jsonl"))
    other = read_rows(write(tmp_path / "c.jsonl", '{"x": 2}\n'))
    assert one.digest == same.digest != other.digest
    assert read_rows(write(tmp_path / "d.json", "[{}]")).digest != read_rows(write(tmp_path / "e.json", "[{} ]")).digest


def test_a_file_that_is_not_there_is_told_with_the_nearest(tmp_path):
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(
        FileNotFoundError, match=r"trian\.json \(.*\), did you mean .*train\.json\?\. Expected rows as JSON"
    ):
        read_rows(tmp_path / "trian.json")
