"""The table of an idle and a busy machine, of runs that take no time."""

import json
import subprocess
import sys

import pytest

import tests.benchmarks.conftest  # noqa: F401 - its scripts are found by it

import busy_machine  # isort: skip - a script, found by the line above


def test_the_ways_alternate_at_every_load_and_the_table_has_the_medians(tmp_path, monkeypatch, capsys):
    took, asked, beside = iter([9.0, 6.0, 7.0, 9.5, 50.0, 30.0, 25.0, 40.0]), [], []
    busy = busy_machine.busy
    monkeypatch.setattr(busy_machine, "busy", lambda load: beside.append(load) or busy(0))
    monkeypatch.setattr(busy_machine, "seconds", lambda way, *_: asked.append(way) or next(took))
    path = tmp_path / "out.json"
    assert busy_machine.main(["--repeats", "2", "--limit", "45", "--loads", "0", "4", "--json", str(path)]) == 0
    assert beside == [0, 4]
    assert asked == ["spinning", "passive", "passive", "spinning"] * 2
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| 0 | 9.2 (9.0 to 9.5) | 6.5 (6.0 to 7.0) | 0.70 |",
        "| 4 | more than 45 | 27.5 (25.0 to 30.0) | below 0.61 |",
    ]
    assert [row["load"] for row in json.loads(path.read_text())["rows"]] == [0, 4]


def test_others_compute_as_long_as_it_is_measured(monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(busy_machine.subprocess, "Popen", lambda *words: started.append(popen(*words)) or started[-1])
    with busy_machine.busy(2):
        assert [process.poll() for process in started] == [None, None]
    assert all(process.returncode for process in started)


@pytest.mark.parametrize(("way", "spins"), [("spinning", "300000"), ("passive", None)])
def test_a_run_has_threads_as_users_have_them_and_a_failure_is_told(monkeypatch, way, spins):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    seen = {}

    def run(command, **options):
        seen.update(command=command, **options)
        return subprocess.CompletedProcess(command, 3, "", "the last line")

    monkeypatch.setattr(busy_machine.subprocess, "run", run)
    with pytest.raises(RuntimeError, match="ended with 3:\nthe last line"):
        busy_machine.seconds(way, 5.0, ["--trainer.max_epochs=1"])
    assert seen["command"][:4] == [sys.executable, "-m", "dowser_pl", "fit"]
    assert seen["timeout"] == 5.0
    assert seen["env"].get("GOMP_SPINCOUNT") == spins
    assert "OMP_NUM_THREADS" not in seen["env"]
    assert seen["env"].get("OMP_WAIT_POLICY") == (None if spins else "PASSIVE")
