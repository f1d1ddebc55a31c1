"""One command proves the package on a GPU, and keeps what it has proved.

    python benchmarks/gpu_proof.py --json benchmarks/results/gpu_h100.json
    python benchmarks/gpu_proof.py --json OUT --only training --budget 500   # a slice; the same file goes on
    python benchmarks/gpu_proof.py --json OUT --rehearse                     # all of it in small, on a CPU
    python benchmarks/gpu_proof.py --json OUT --table                        # what the file holds, as Markdown

Parts run in order of worth, each in steps (`gpu/steps.py`) with a time limit of its own. A step runs in a worker
process and its result is in the file before the next begins; one that fails, crashes or overruns leaves its traceback
there and never stops another. What is done is not repeated, so a proof that was killed goes on where it was; failed
steps are tried again. Nothing is downloaded.
"""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from dowser_pl.files.atomic import write_atomically  # noqa: E402
from dowser_pl.reporting.provenance import provenance  # noqa: E402

START_SECONDS = 60  # that a worker may take to load its libraries
REHEARSAL = 5  # times the seconds of a GPU: a CPU may be a busy one


@dataclass(frozen=True)
class Step:
    """One measurement.

    Args:
        part: which it belongs to.
        name: of the step within its part.
        seconds: it may take on a GPU.
    """

    part: str
    name: str
    seconds: int

    @property
    def key(self) -> str:
        """In the file and on the worker's command line."""
        return f"{self.part}.{self.name}"


STEPS = [
    Step("environment", "ceilings", 60),
    Step("quickstart", "cpu_reference", 60),
    Step("quickstart", "32-true", 90),
    Step("importance", "pass", 120),
    Step("training", "compact", 60),
    Step("training", "compact_8bit", 60),
    Step("training", "dense", 60),
    Step("training", "full", 60),
    Step("training", "lora", 60),
    Step("gpu_tests", "pytest", 150),
    Step("quickstart", "bf16-mixed", 60),
    Step("quickstart", "bf16-true", 60),
    Step("quickstart", "16-mixed", 60),
    Step("quickstart", "resume_after_kill", 120),
    Step("sharded", "single", 40),
    Step("sharded", "fsdp2", 60),
    Step("sharded", "fsdp2_folder_and_back", 80),
    Step("sharded", "fsdp1", 60),
    Step("sharded", "ddp", 60),
    Step("families", "step_and_answer", 90),
    Step("profile", "compact_step", 60),
    Step("profile", "importance", 60),
    Step("training", "fit_7b", 300),
    Step("quickstart", "recommended", 90),
    Step("training", "fit_7b_qlora_null_space", 300),
    Step("training", "fit_7b_recommended", 300),
]
PARTS = list(dict.fromkeys(step.part for step in STEPS))


class Proof:
    """The file and what is in it.

    Args:
        path: of the JSON.
        rehearse: whether its steps are small ones on a CPU.
    """

    def __init__(self, path: Path, rehearse: bool) -> None:
        self.path = path
        self.content: dict[str, Any] = {"rehearsal": rehearse, "steps": {}}
        if path.is_file():
            self.content = json.loads(path.read_text(encoding="utf-8"))
            if self.content["rehearsal"] != rehearse:
                kind = "a rehearsal" if self.content["rehearsal"] else "a proof on a GPU"
                raise SystemExit(f"{path} holds {kind}, expected the other kind; name another file with --json")

    def done(self, step: Step) -> bool:
        """Whether a result is there, or a reason why there is none to be had."""
        return self.content["steps"].get(step.key, {}).get("status") in ("done", "left out")

    def put(self, step: Step, result: dict[str, Any]) -> None:
        """Write at once."""
        self.content["steps"][step.key] = result
        self.content |= provenance("benchmarks/gpu_proof.py", sys.argv[1:])
        write_atomically(self.path, json.dumps(self.content, indent=1) + "\n")
        error = str(result.get("error", "")).strip().splitlines()
        tail = f": {error[-1]}" if error else ""
        print(f"{step.key:<36}{result['status']:<10}{result.get('wall_seconds', 0):8.1f} s{tail}", flush=True)


class Worker:
    """A process that runs the steps it is told, one by one.

    Args:
        work: folder of everything that steps write.
        rehearse: whether to be small.
        traces: folder that profiles are put into, where they are small enough to be kept.
    """

    def __init__(self, work: Path, rehearse: bool, traces: Path) -> None:
        command = [sys.executable, "-m", "gpu.steps", str(work), "rehearse" if rehearse else "full", str(traces)]
        path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._log = tempfile.TemporaryFile(dir=work)  # noqa: SIM115 - lives as long as the worker
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            bufsize=0,  # what a buffer holds, select does not see
            env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"},
        )
        self.fresh = True

    def run(self, step: Step, seconds: float) -> dict[str, Any]:
        """The step's result; a worker that overran or crashed is gone afterwards."""
        start = time.monotonic()
        limit = start + seconds + (START_SECONDS if self.fresh else 0)
        self.fresh = False
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{step.key}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._failed("the worker ended", start)
        while True:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, limit - time.monotonic()))
            if not ready:
                return self._failed(f"stopped after its limit of {seconds:.0f} s", start)
            line = self._process.stdout.readline()
            if not line:
                return self._failed(f"the worker ended with status {self._process.wait()}", start)
            if line.startswith(b"{"):
                return {"wall_seconds": time.monotonic() - start} | json.loads(line)

    def stop(self) -> None:
        """With everything it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def gone(self) -> bool:
        """Whether another is needed for the next step."""
        return self._process.poll() is not None

    def _failed(self, why: str, start: float) -> dict[str, Any]:
        self.stop()
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 6000))
        printed = self._log.read().decode(errors="replace")
        return {"status": "failed", "wall_seconds": time.monotonic() - start, "error": f"{printed}\n{why}"}


def prove(proof: Proof, steps: Sequence[Step], work: Path, budget: float, rehearse: bool) -> None:
    """Run what is not done yet, as long as the budget lasts."""
    end = time.monotonic() + budget
    worker: Worker | None = None
    for step in steps:
        left = end - time.monotonic()
        if proof.done(step):
            continue
        if left < 10:
            print(f"{step.key:<36}not begun: the budget is used up", flush=True)
            continue
        if worker is None or worker.gone:
            worker = Worker(work, rehearse, proof.path.resolve().parent)
        limit = step.seconds * (REHEARSAL if rehearse else 1)
        result = worker.run(step, max(1.0, min(limit, left - (START_SECONDS if worker.fresh else 0))))
        proof.put(step, result)
        if result["status"] == "failed":  # memory of what failed may be held by its traceback
            worker.stop()
    if worker is not None:
        worker.stop()


def table(content: dict[str, Any]) -> str:
    """A line for each step, how it ended and its numbers; then where the time of what was profiled goes."""
    steps = content["steps"]
    card = steps.get("environment.ceilings", {}).get("device", "a card that is not told")
    versions = ", ".join(f"{name} {version}" for name, version in content.get("versions", {}).items())
    lines = [f"{'A rehearsal on a CPU' if content['rehearsal'] else f'Run on one {card}'} ({versions})."]
    lines += ["", "| step | state | seconds | numbers |", "| :-- | :-- | --: | :-- |"]
    for key, step in steps.items():
        lines.append(f"| `{key}` | {step['status']} | {step.get('wall_seconds', 0):.0f} | {_numbers(step)} |")
    for key, step in steps.items():
        if step.get("top"):
            lines += ["", f"`{key}`:", "", "| kernel | calls | milliseconds |", "| :-- | --: | --: |"]
            lines += [
                f"| `{_kernel(row['name'])}` | {row['calls']} | {row['milliseconds']:.1f} |" for row in step["top"]
            ]
    return "\n".join(lines)


def _numbers(step: dict[str, Any]) -> str:
    if step["status"] != "done":
        error = str(step.get("error", "")).strip().splitlines()
        return error[-1].replace("|", "/") if error else ""
    return "; ".join(f"{name} {_text(value)}" for name, value in step.get("summary", {}).items())


def _kernel(name: str) -> str:
    return name.removeprefix("void ").replace("|", "/").replace("`", "")[:80]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write; 1 if a step failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="results, and what they go on from")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--budget", type=float, default=1500, metavar="SECONDS", help="end by itself within these")
    parser.add_argument("--rehearse", action="store_true", help="every part in small, on a CPU")
    parser.add_argument("--table", action="store_true", help="print what OUT holds and run nothing")
    parser.add_argument("--work", type=Path, help="where runs are written; a temporary folder by default")
    options = parser.parse_args(argv)
    if options.table:
        print(table(json.loads(options.json.read_text(encoding="utf-8"))))
        return 0
    steps = [step for step in STEPS if step.part in options.only]
    proof = Proof(options.json, options.rehearse)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        prove(proof, steps, work, options.budget, options.rehearse)
    return int(any(proof.content["steps"].get(step.key, {}).get("status") == "failed" for step in steps))


if __name__ == "__main__":
    sys.exit(main())
