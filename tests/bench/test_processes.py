"""Real processes: two cells on a tiny model, what a failing one says, and none that outlives a killed bench."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dowser_pl.__main__ import main
from dowser_pl.bench.processes import Processes
from tests.tiny_models import save_text_model, save_tiny_llava

ROOT = Path(__file__).parents[2]


def bench_file(folder: Path, data: str = "tests.tiny_run.TinyData", save: Callable = save_tiny_llava) -> Path:
    content = {
        "folder": str(folder / "out"),
        "set": {
            "data": data,
            "trainer.max_steps": 2,
            "trainer.accelerator": "cpu",
            "model.dtype": "float32",
            "dowser.cache_dir": None,
        },
        "validation": {"data.num_rows": 10},
        "test": {"data.num_rows": 12},
        "seeds": [3],
        "worlds": {"tiny": str(save(folder / "model"))},
        "tasks": {"colour": {}},
        "smallest_grid": 1,
        "methods": {"Random": {"options": {"dowser.method": "Random"}, "grid": [0.01]}},
    }
    (folder / "bench.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "bench.yaml"


@pytest.mark.slow
def test_two_cells_from_the_command_line(tmp_path, capsys):
    arguments = ["bench", "-c", str(bench_file(tmp_path))]
    assert main([*arguments, "--json", str(tmp_path / "numbers.json")]) == 0
    out = capsys.readouterr().out
    assert "[1/2] Random lr 0.01 seed 0 validation: D " in out and "[2/2] Random lr 0.01 seed 3 test: D " in out
    content = json.loads((tmp_path / "numbers.json").read_text())
    assert content["command"][:4] == ["python", "-m", "dowser_pl", "bench"] and "torch" in content["versions"]
    random = content["methods"]["Random"]
    assert random["chosen"] == {"lr": 0.01} and 0 <= random["h_score"]["mean"] <= 1
    assert random["trainable_share"] == pytest.approx(0.1, abs=0.01)
    assert random["seconds"]["mean"] > 0 and random["peak_memory_bytes"] > 1 << 20 and random["file_bytes"] > 1000
    log = next((tmp_path / "out" / "cells").glob("*test/log.txt")).read_text()
    assert log.startswith("python -m dowser_pl fit --data tests.tiny_run.TinyData")
    assert "Report written to" in log
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*")}
    (tmp_path / "out" / "bench.md").unlink()
    assert main(arguments) == 0  # writes the tables anew and runs nothing
    assert (tmp_path / "out" / "bench.md").is_file()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*")} == stamps


@pytest.mark.slow
def test_cells_of_a_model_of_text_alone(tmp_path):
    file = bench_file(tmp_path, "tests.tiny_run.TinyTextData", save_text_model)
    assert main(["bench", "-c", str(file), "--json", str(tmp_path / "numbers.json")]) == 0
    assert json.loads((tmp_path / "numbers.json").read_text())["methods"]["Random"]["chosen"] == {"lr": 0.01}


@pytest.mark.slow
def test_a_command_that_fails_leaves_its_last_words(tmp_path):
    ended = Processes()([["fit", "--model.path", "./no/such/model"]], tmp_path)
    assert ended.status != 0 and ended.peak_memory_bytes is None
    assert "no/such/model" in (tmp_path / "log.txt").read_text()


ORPHAN = """
import multiprocessing, os, sys, time
from dowser_pl.bench.processes import _end_with_parent

def work(path):
    _end_with_parent()
    open(path, "w").write(str(os.getpid()))
    time.sleep(120)

if __name__ == "__main__":
    multiprocessing.get_context("forkserver").Process(target=work, args=(sys.argv[1],)).start()
    time.sleep(120)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="asks /proc whether a process is alive")
def test_no_process_outlives_a_killed_bench(tmp_path):
    """Or the next bench would run the very cell that it is still writing."""
    (tmp_path / "orphan.py").write_text(ORPHAN)
    told = tmp_path / "pid"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    bench = subprocess.Popen([sys.executable, str(tmp_path / "orphan.py"), str(told)], env=environment)
    wait_for(lambda: told.is_file() and told.read_text())
    child = int(told.read_text())
    assert alive(child)
    bench.send_signal(signal.SIGKILL)
    bench.wait()
    wait_for(lambda: not alive(child))


def test_an_interruption_and_its_exit_status(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Processes, "__call__", interrupted)
    assert main(["bench", "-c", str(bench_file(tmp_path))]) == 130
    assert "Interrupted; the same command goes on from here" in capsys.readouterr().err


def test_mistakes_and_the_list(tmp_path, capsys):
    file = bench_file(tmp_path)
    assert main(["bench", "-c", str(file), "--only", "Randon"]) == 1
    assert capsys.readouterr().err.endswith("expected one of: Random, did you mean Random?\n")
    assert main(["bench", "-c", str(file), "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed == ["to run    Random lr 0.01 seed 0 validation", "and 1 that depend on what these will show"]
    assert not (tmp_path / "out").exists()
    assert main(["bench", "-c", "bench/nothing"]) == 1
    assert "there is no configuration file 'bench/nothing'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quick_bench_runs_every_method(tmp_path, monkeypatch):
    """As shipped; the numbers mean little, but none is missing."""
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "-c", "bench/quick"]) == 0
    content = json.loads((tmp_path / "runs/bench/quick/bench.json").read_text())
    assert content["cells"]["failed"] == 0 and content["cells"]["finished"] == content["cells"]["all"]
    for name, method in content["methods"].items():
        assert method["h_score"] is not None, name
        assert method["seconds"]["mean"] > 0 and method["file_bytes"] > 0, name
    assert not list((tmp_path / "runs/bench/quick/cells").glob("*/run/model"))


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    return "State:\tZ" not in status


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
