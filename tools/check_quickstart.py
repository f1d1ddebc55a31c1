"""Check what the quickstart wrote: every file, and the numbers that the README promises.

    python tools/check_quickstart.py runs/quickstart

Exits with 1 and the first thing that is wrong.
"""

import argparse
import json
import sys
from pathlib import Path

from dowser_pl.reporting import read_report

FILES = ("report.json", "report.md", "report.png", "config.yaml", "checkpoints/last.ckpt")
MODEL_FILES = ("config.json", "model.safetensors", "processor_config.json", "generation_config.json")
KEYS = (
    "method update_ratio seed tasks upstream downstream h_score frozen trainable seconds peak_memory_bytes versions"
).split()


def problems(run: Path) -> list[str]:
    """Everything that is not as promised, in words."""
    expected = [*FILES, *(f"model/{name}" for name in MODEL_FILES)]
    missing = [name for name in expected if not (run / name).is_file()]
    if missing:
        return [f"{run} lacks {', '.join(missing)}"]
    raw = json.loads((run / "report.json").read_text())
    report = read_report(run)
    gain, drop = report.downstream.change, report.upstream.change
    promises = {
        "report.json has every key": all(key in raw for key in KEYS),
        "base upstream mean >= 0.90": (report.upstream.before or 0) >= 0.90,
        "downstream gain >= 0.30": gain is not None and gain >= 0.30,
        "upstream drop <= 0.30": drop is not None and drop >= -0.30,
        "no frozen entry changed": report.frozen.entries > 0 and report.frozen.changed == 0,
        "trainable entries changed": report.trainable.changed > 0,
        "ten percent is trainable": report.trainable.entries * 9 <= report.frozen.entries * 1.001,
        "logs for TensorBoard and CSV": all(list(run.glob(f"logs/**/{name}*")) for name in ("events", "metrics.csv")),
    }
    return [promise for promise, kept in promises.items() if not kept]


def main() -> int:
    """Print what is wrong, if anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    wrong = problems(parser.parse_args().run)
    for line in wrong:
        print(f"not so: {line}", file=sys.stderr)
    if not wrong:
        print("the quickstart wrote what the README promises")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
