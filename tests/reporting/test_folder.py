from pathlib import Path

import pytest

from dowser_pl.reporting import read_report, write_report
from tests.reporting.samples import report


def test_write_and_read(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    write_report(report(), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "report.md", "report.png"]
    assert read_report(folder) == read_report(folder / "report.json") == report()
    assert "](report.png)" in (folder / "report.md").read_text()


def test_folder_without_a_report_names_those_below(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no report\.json; a run writes it when fit ends\.$"):
        read_report(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.json").write_text(report().to_json())
    with pytest.raises(FileNotFoundError, match=r"Reports below it: .*a\.$"):
        read_report(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        read_report(tmp_path / "nope")


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        read_report(tmp_path)
