"""The proof on a GPU keeps what is done, outlives what fails, ends within its budget, and can be rehearsed whole."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gpu_proof
from gpu_proof import PARTS, STEPS, Proof, Step, Worker, prove, table

ROOT = Path(__file__).parents[2]
STUB = """
import json, os, sys, time
for line in sys.stdin:
    what = line.strip().partition(".")[2]
    if what == "crash": os._exit(3)
    if what == "hang": time.sleep(60)
    print("not a result", flush=True)
    state = "failed" if what == "fail" else "done"
    print(json.dumps({"status": state, "pid": os.getpid(), "summary": {"x": 1.5}}), flush=True)
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Steps that do what their name says."""
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "steps.py").write_text(STUB)
    monkeypatch.setattr(gpu_proof, "HERE", tmp_path)
    monkeypatch.setattr(gpu_proof, "START_SECONDS", 5)
    return tmp_path


def steps(*names, seconds=2):
    return [Step("part", name, seconds) for name in names]


def run(folder, wanted, budget=60.0):
    proof = Proof(folder / "out.json", rehearse=False)
    prove(proof, wanted, folder, budget, rehearse=False)
    return json.loads((folder / "out.json").read_text())["steps"] if (folder / "out.json").is_file() else {}


@pytest.mark.slow
def test_what_fails_crashes_or_hangs_stops_nothing(stub):
    found = run(stub, steps("one", "fail", "crash", "hang", "two", "three"))
    assert {key: step["status"] for key, step in found.items()} == {
        "part.one": "done",
        "part.fail": "failed",
        "part.crash": "failed",
        "part.hang": "failed",
        "part.two": "done",
        "part.three": "done",
    }
    assert "status 3" in found["part.crash"]["error"]
    assert "stopped after its limit of 2 s" in found["part.hang"]["error"]
    assert found["part.two"]["pid"] == found["part.three"]["pid"] != found["part.one"]["pid"]


def test_what_is_done_is_not_repeated_and_what_failed_is_tried_again(stub):
    first = run(stub, steps("one", "fail"))
    second = run(stub, steps("one", "fail", "two"))
    assert second["part.one"] == first["part.one"]
    assert second["part.fail"]["pid"] != first["part.fail"]["pid"]
    assert second["part.two"]["status"] == "done"


@pytest.mark.slow
def test_it_ends_within_its_budget(stub):
    start = time.monotonic()
    found = run(stub, [*steps("one"), *steps("hang", "hang2", seconds=100)], budget=13)
    assert time.monotonic() - start < 13.5
    assert found["part.one"]["status"] == "done"
    assert found["part.hang"]["status"] == "failed"
    assert "part.hang2" not in found


def test_a_rehearsal_and_a_proof_do_not_share_a_file(tmp_path):
    (tmp_path / "out.json").write_text(json.dumps({"rehearsal": True, "steps": {}}))
    with pytest.raises(SystemExit, match="holds a rehearsal, expected the other kind"):
        Proof(tmp_path / "out.json", rehearse=False)


def test_a_worker_leaves_nothing_behind(stub):
    worker = Worker(stub, rehearse=False, traces=stub)
    assert worker.run(Step("part", "one", 5), 5)["status"] == "done"
    worker.stop()
    assert worker.gone


def test_the_docs_show_what_the_file_holds():
    """`python benchmarks/gpu_proof.py --json benchmarks/results/gpu_h200.json --table`, pasted."""
    text = (ROOT / "docs" / "results" / "gpu.md").read_text()
    for path in sorted((ROOT / "benchmarks" / "results").glob("gpu_*.json")):
        content = json.loads(path.read_text())
        assert not content["rehearsal"]
        assert table(content) in text, path
        assert not [key for key, step in content["steps"].items() if step["status"] == "failed"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_is_rehearsed_on_a_cpu(tmp_path):
    command = [sys.executable, "benchmarks/gpu_proof.py", "--json", str(tmp_path / "out.json"), "--rehearse"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = json.loads((tmp_path / "out.json").read_text())["steps"]
    assert {key: step["error"] for key, step in found.items() if step["status"] == "failed"} == {}
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {key.partition(".")[0] for key in found} == set(PARTS)
    assert list(found) == [step.key for step in STEPS]
    again = subprocess.run([*command, "--budget", "30"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.stdout == "", "nothing is left to do"
