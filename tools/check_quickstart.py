"""Check what the quickstart wrote: every file, the numbers that the README promises, and the patch.

    python tools/check_quickstart.py runs/quickstart

Exits with 1 and the first thing that is wrong.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from dowser_pl.models.sources import EMBEDDED
from dowser_pl.patches.apply import apply_patches, remove_patch
from dowser_pl.reporting import Report, read_report

BASE = EMBEDDED["embedded:world"]
FILES = (
    "report.json",
    "report.md",
    "report.html",
    "report.png",
    "config.yaml",
    "checkpoints/last.ckpt",
    "patch.safetensors",
)
MODEL_FILES = ("config.json", "model.safetensors", "processor_config.json", "generation_config.json")
KEYS = (
    "method update_ratio seed tasks upstream downstream h_score frozen trainable seconds peak_memory_bytes versions "
    "update frozen_digest"
).split()


def problems(run: Path) -> list[str]:
    """Everything that is not as promised, in words."""
    expected = [*FILES, *(f"model/{name}" for name in MODEL_FILES)]
    missing = [name for name in expected if not (run / name).is_file()]
    if missing:
        return [f"{run} lacks {', '.join(missing)}"]
    report = read_report(run)
    promises = {
        **of_the_report(report),
        "report.json has every key": all(key in json.loads((run / "report.json").read_text()) for key in KEYS),
        "logs for TensorBoard and CSV": all(list(run.glob(f"logs/**/{name}*")) for name in ("events", "metrics.csv")),
        "the patch is bits and values, and at most a tenth more": is_small(run / "patch.safetensors", report),
        **of_the_patch(run),
    }
    return [promise for promise, kept in promises.items() if not kept]


def of_the_report(report: Report) -> dict[str, bool]:
    """Promise -> kept: what was learnt, what was kept, and that nothing frozen moved."""
    gain, drop, digest = report.downstream.change, report.upstream.change, report.frozen_digest
    return {
        "base upstream mean >= 0.90": (report.upstream.before or 0) >= 0.90,
        "downstream gain >= 0.30": gain is not None and gain >= 0.30,
        "upstream drop <= 0.30": drop is not None and drop >= -0.30,
        "no frozen entry changed": report.frozen.entries > 0 and report.frozen.changed == 0,
        "the digest of the frozen entries stays": "before" in digest and digest["before"] == digest.get("after"),
        "trainable entries changed": report.trainable.changed > 0,
        "ten percent is trainable": report.trainable.entries * 9 <= report.frozen.entries * 1.001,
        "only what is trainable was trained": report.update == "compact",
    }


def is_small(patch: Path, report: Report) -> bool:
    """Whether the patch takes a bit per entry of the tuned matrices and a float32 per trainable one, within 10 %."""
    least = (report.frozen.entries + report.trainable.entries) / 8 + 4 * report.trainable.entries
    return least <= patch.stat().st_size <= 1.1 * least


def of_the_patch(run: Path) -> dict[str, bool]:
    """Promise -> kept: the patch turns the base into the exported model, and off again."""
    with tempfile.TemporaryDirectory() as folder:
        patched = Path(folder) / "patched"
        try:
            apply_patches(BASE, [run / "patch.safetensors"], patched)
            applied = same_tensors(patched, run / "model")
            remove_patch(patched)
        except ValueError as error:
            return {f"the patch can be applied and removed ({error})": False}
        return {
            "the base with the patch is the exported model, bit for bit": applied,
            "without the patch it is the base again, bit for bit": same_tensors(patched, BASE),
        }


def same_tensors(one: Path, other: Path) -> bool:
    """Whether two model folders hold the same names, shapes, dtypes and bits."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(
        (tensor.dtype, tensor.shape) == (second[name].dtype, second[name].shape)
        and torch.equal(tensor.view(-1).view(torch.uint8), second[name].view(-1).view(torch.uint8))
        for name, tensor in first.items()
    )


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
