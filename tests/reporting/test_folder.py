from pathlib import Path

import pytest

from dowser_pl.reporting import read_report, write_report
from tests.reporting.samples import report, with_budget


def test_write_and_read(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    write_report(report(), folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html", "report.json", "report.md", "report.png",
    ]  # fmt: skip
    assert read_report(folder) == read_report(folder / "report.json") == report()
    assert "](report.png)" in (folder / "report.md").read_text()


def test_a_curve_has_a_picture_of_its_own(tmp_path: Path) -> None:
    write_report(with_budget(), tmp_path)
    names = ["curve.png", "report.html", "report.json", "report.md", "report.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "](curve.png)" in (tmp_path / "report.md").read_text()
    assert read_report(tmp_path) == with_budget()


def test_the_curve_of_an_earlier_run_does_not_stay(tmp_path: Path) -> None:
    (tmp_path / "curve.png").write_bytes(b"earlier")
    write_report(report(), tmp_path)
    assert not (tmp_path / "curve.png").exists()
    assert "curve.png" not in (tmp_path / "report.md").read_text()


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


def test_a_path_that_is_no_run_is_told_with_the_nearest(tmp_path):
    (tmp_path / "quickstart").mkdir()
    with pytest.raises(FileNotFoundError, match=f"folder {tmp_path}/quickstrat, did you mean {tmp_path}/quickstart\\?"):
        read_report(tmp_path / "quickstrat")
