import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dowser_pl.commands.report import main
from dowser_pl.reporting import TaskScore, text_comparison, text_table
from tests.reporting.samples import report, with_budget


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    folders = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(report(run=name).to_json())
        folders.append(str(tmp_path / name))
    return folders


def test_one_run(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(runs[:1]) == 0
    assert capsys.readouterr().out == text_table(report(run="a")) + "\n"


def test_several_runs(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(runs) == 0
    assert capsys.readouterr().out == text_comparison([report(run="a"), report(run="b")]) + "\n"


def test_a_closed_pipe_is_no_error(runs: list[str]) -> None:
    code = f"import sys; from dowser_pl.commands.report import main; sys.exit(main({runs[:1]!r}))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("count", [1, 2])
def test_markdown(runs: list[str], count: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runs[:count], "--markdown"]) == 0
    assert "| :--- |" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2])
def test_json_and_plot(runs: list[str], count: int, tmp_path: Path) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    assert main([*runs[:count], "--json", str(out), "--plot", str(picture)]) == 0
    content = json.loads(out.read_text())
    assert [run["path"] for run in content["runs"]] == runs[:count]
    assert content["runs"][0]["h_score"] == {"before": 0.0, "after": 0.5}
    assert content["command"][:4] == ["python", "-m", "dowser_pl", "report"]
    assert {"machine", "versions"} <= set(content)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "error: There is no file or folder nope"),
        (["{run}", "--plot", "x.gif"], "error: Cannot plot to x.gif"),
        (["{run}", "--plot-curve", "x.png"], "error: The run has no curve to draw"),
        (["{run}", "{run}", "--plot-curve", "x.png"], "error: --plot-curve draws the curve of one run, got 2 runs"),
    ],
)
def test_errors_are_one_line(
    runs: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(run=runs[0]) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_plot_without_upstream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    path.write_text(report(tasks={"digits": TaskScore("downstream", "vqa", 0.0, 0.5)}).to_json())
    assert main([str(path), "--plot", str(tmp_path / "a.png")]) == 0
    assert "H-score" in capsys.readouterr().out


def test_a_run_with_a_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out, picture = (tmp_path / name for name in ("report.json", "out.json", "curve.svg"))
    path.write_text(with_budget().to_json())
    assert main([str(path), "--json", str(out), "--plot-curve", str(picture)]) == 0
    assert "Chosen: update ratio 0.05" in capsys.readouterr().out
    assert json.loads(out.read_text())["runs"][0]["knee"] == 0.05
    assert "<svg" in picture.read_text()


def test_with_and_without_a_curve_side_by_side(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, picture = tmp_path / "curve.json", tmp_path / "both.png"
    path.write_text(with_budget().to_json())
    assert main([runs[0], str(path), "--plot", str(picture)]) == 0
    assert "0.05 of 0.1" in capsys.readouterr().out
    assert picture.is_file()


def test_a_page(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([runs[0], "--html", str(tmp_path / "a.html")]) == 0
    assert main([str(Path(runs[0]) / "report.json"), "--html", str(tmp_path / "b.html")]) == 0
    assert (tmp_path / "a.html").read_text() == (tmp_path / "b.html").read_text()
    assert main([*runs[:2], "--html", str(tmp_path / "c.html")]) == 1
    assert "--html writes the page of one run, got 2 runs" in capsys.readouterr().err


def test_dark_pictures(runs: list[str], tmp_path: Path) -> None:
    for name, given in (("one.png", runs[:1]), ("several.png", runs[:2])):
        assert main([*given, "--plot", str(tmp_path / name), "--dark"]) == 0
        with Image.open(tmp_path / name) as image:
            assert max(image.convert("RGB").getpixel((3, 3))) < 64
