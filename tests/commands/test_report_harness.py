"""`report --base --tuned`: what lmms-eval and VLMEvalKit measured, as a table of our own."""

import json
from pathlib import Path

import pytest

from dowser_pl.__main__ import main
from tests.reporting.harnesses.result_files import change, lmms_task, write_lmms_eval, write_vlmevalkit

BEFORE, AFTER = {"gqa": (1, 1, 0, 1), "mine": (0, 0, 0, 1)}, {"gqa": (1, 0, 0, 1), "mine": (1, 1, 0, 1)}


@pytest.fixture
def files(tmp_path):
    """The results of a base and of a tuned model, by lmms-eval."""
    told = {"base": BEFORE, "tuned": AFTER}
    return {
        name: write_lmms_eval(
            tmp_path / name, name, {task: lmms_task(map(float, each)) for task, each in tasks.items()}
        )
        for name, tasks in told.items()
    }


def line(files, *more):
    return ["report", "--base", str(files["base"]), "--tuned", str(files["tuned"]), *more]


def told(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_before_and_after(files, tmp_path, capsys):
    picture, numbers = tmp_path / "a.png", tmp_path / "a.json"
    assert main(line(files, "--downstream", "mine", "--plot", str(picture), "--json", str(numbers))) == 0
    said = told(capsys)
    assert "1 base 2 tuned" in said
    assert "mine downstream exact_match 4 0.250 ±0.250 0.750 ±0.250" in said
    assert "gqa upstream exact_match 4 0.750 ±0.250 0.500 ±0.289" in said
    assert "H-score 0.375 0.600" in said and "mine 2 less 1 +0.500 0.000 to +1.000" in said
    assert "protocol lmms-eval: gqa: exact_match, 16 new tokens; mine: exact_match, 16 new tokens" in said
    assert picture.stat().st_size > 5_000
    (run,) = json.loads(numbers.read_text())["runs"]
    assert run["h_score"] == {"before": 0.375, "after": pytest.approx(0.6)} and run["path"] == run["run"] == "tuned"


def test_without_a_downstream_task_there_is_no_h_score(files, capsys):
    assert main(line(files, "--markdown")) == 0
    said = told(capsys)
    assert "No H-score, which is of both roles: no task is downstream." in said and "| H-score" not in said


def test_several_tuned_models_and_only_some_tasks(files, tmp_path, capsys):
    other = write_lmms_eval(tmp_path / "other", "tuned", {"gqa": lmms_task((1.0, 1.0, 1.0, 1.0))})
    assert main(line(files, "--tuned", str(other), "--upstream", "gqa")) == 0
    said = told(capsys)
    assert f"/other/{other.name})" in said and "gqa 3 less 1 +0.250" in said and "mine" not in said


def test_files_of_vlmevalkit(tmp_path, capsys):
    base = write_vlmevalkit(tmp_path, "llava")
    tuned = write_vlmevalkit(tmp_path, "llava-tuned", choice=(1, 1, 1, 1))
    folders = ["report", "--base", str(base), "--tuned", str(tuned), "--downstream", "MMBench_DEV_EN"]
    assert main(folders) == 1
    assert "no shares of 1: COCO_VAL 110, POPE 60, TextVQA_VAL 63.3333" in capsys.readouterr().err
    scales = ["--out-of", "COCO_VAL=100", "POPE=100", "TextVQA_VAL=100"]
    assert main([*folders, *scales, "--metric", "POPE=Overall|acc"]) == 0
    said = told(capsys)
    assert "MMBench_DEV_EN downstream Overall 4 0.750 ±0.250 1.000 ±0.000" in said
    assert "POPE upstream Overall|acc 2 0.500 ±0.500" in said and "COCO_VAL upstream CIDEr 7 1.100 1.100" in said
    assert "MMBench_DEV_EN 2 less 1 +0.250 0.000 to +0.750" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--downstream", "me"], "--downstream names me, expected a task of: gqa, mine"),
        (["--out-of", "gqa"], "got --out-of gqa, expected the name of a task, an equals sign and a value"),
        (["--out-of", "gqa=none"], "got --out-of gqa=none, expected a number above 0"),
        (["--html", "a.html"], "--base and --tuned go together, without runs and without --html"),
    ],
)
def test_what_is_not_understood_is_one_line(words, message, files, capsys):
    assert main(line(files, *words)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_which_files_are_meant(files, capsys):
    for words, message in (
        ([], "there is nothing to report. Fix: name a run, or files by --base and --tuned"),
        (["--base", str(files["base"])], "--base and --tuned go together"),
        (["runs/a", *line(files)[1:]], "--base and --tuned go together, without runs"),
        (["runs/a", "--downstream", "gqa"], "--downstream is for files of other programs"),
    ):
        assert main(["report", *words]) == 1
        assert message in capsys.readouterr().err


def test_other_protocols_are_not_compared(files, capsys):
    change(files["tuned"], "config", "limit", to=4.0)
    assert main(line(files, "--plot", "never.png")) == 1
    assert "'gqa' was not measured in the same way: limit is None in run 1, 4.0 in run 2" in capsys.readouterr().err
    assert not Path("never.png").exists()
