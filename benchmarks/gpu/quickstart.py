"""The quickstart: in every precision, killed and gone on with, and under every strategy."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from gpu.place import ROOT, Place
from gpu.runs import FEW_ROWS, check_frozen, command, compare_masks, compare_runs, fit, folder_of, masks_of, python_path

__all__ = ["cpu_reference", "folder_and_back", "quickstart", "recommended", "resume_after_kill", "sharded", "single"]


def cpu_reference(place: Place) -> dict[str, Any]:
    """The masks that a CPU makes in float32."""
    fit(place, "cpu", ["--trainer.accelerator=cpu", "--trainer.max_steps=1", "--trainer.limit_val_batches=1"])
    return {"summary": {"trainable entries": sum(int(mask.sum()) for mask in masks_of(place, "cpu").values())}}


def quickstart(precision: str) -> Callable[[Place], dict[str, Any]]:
    """The README's job in one precision; in 32-true as it is, else two epochs of it."""

    def run(place: Place) -> dict[str, Any]:
        options = [f"--trainer.precision={precision}"]
        if precision != "32-true":
            options.append("--trainer.max_epochs=2")
        seconds = fit(place, precision, [*options, f"--trainer.accelerator={place.accelerator}"])
        report = json.loads((folder_of(place, precision) / "report.json").read_text())
        differing = compare_masks(place, precision, "cpu", cpu_reference)
        if precision == "32-true" and differing > 100:
            raise AssertionError(f"{differing} mask entries differ from the CPU's, expected hardly any in float32")
        return {
            "report": report,
            "differing_mask_entries": differing,
            "frozen_tensors_compared": check_frozen(place, precision),
            "summary": {
                "H-score": report["h_score"]["after"] if isinstance(report["h_score"], dict) else report["h_score"],
                "frozen entries": "bit-identical",
                "mask entries that differ from the CPU's": differing,
                "fit s": seconds,
            },
        }

    return run


def recommended(place: Place) -> dict[str, Any]:
    """The README's job with the method that leads the bench, at its rate there."""
    options = ["-c", "method/recommended", "--model.optimizer.lr=4e-3", f"--trainer.accelerator={place.accelerator}"]
    seconds = fit(place, "recommended", options, rehearsal=FEW_ROWS)
    report = json.loads((folder_of(place, "recommended") / "report.json").read_text())
    if report["frozen"]["changed"]:
        raise AssertionError(f"{report['frozen']['changed']} entries that are not trained moved")
    drift = report["drift"]["kl"]
    return {"report": report, "summary": {"H-score": report["h_score"], "KL to the base": drift, "fit s": seconds}}


def resume_after_kill(place: Place) -> dict[str, Any]:
    """Kill a run when its first checkpoint is there, go on from it, and compare with the unbroken run."""
    name, options = "killed", ["--trainer.precision=32-true", f"--trainer.accelerator={place.accelerator}"]
    words = [sys.executable, "-m", "dowser_pl", *command(place, name, options)]
    last = folder_of(place, name) / "checkpoints/last.ckpt"
    process = subprocess.Popen(words, cwd=ROOT, stdout=sys.stderr, env=os.environ | {"PYTHONPATH": python_path()})
    deadline = time.monotonic() + 90
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if not last.exists():
        process.kill()
        raise AssertionError("no checkpoint was written before the run ended or 90 s were over")
    process.send_signal(signal.SIGKILL)
    process.wait()
    fit(place, name, [*options, "--ckpt_path=last"])
    farthest, differing = compare_runs(place, name, "32-true", quickstart("32-true"))
    return {
        "largest_difference": farthest,
        "frozen_tensors_compared": check_frozen(place, name),
        "summary": {"mask entries that differ": differing, "largest difference of a value": farthest},
    }


def sharded(name: str, config: str, extra: tuple[str, ...] = ()) -> Callable[[Place], dict[str, Any]]:
    """Twenty steps of the quickstart under a strategy, on one device, beside those of no strategy."""

    def run(place: Place) -> dict[str, Any]:
        seconds = fit(place, name, ["-c", f"strategy/{config}", *_twenty(place), *extra])
        return _beside_single(place, name) | {"fit_seconds": seconds}

    return run


def folder_and_back(place: Place) -> dict[str, Any]:
    """Ten steps under FSDP2 into a checkpoint of shards; one plain process goes on from it to twenty."""
    name = "fsdp2_folder"
    apart = "--trainer.strategy.init_args.save_distributed_checkpoint=true"
    fit(place, name, ["-c", "strategy/fsdp2", *_twenty(place, part=0.5), apart])
    last = folder_of(place, name) / "checkpoints/last.ckpt"
    if not last.is_dir():
        raise AssertionError(f"{last} is no folder of shards")
    moved = last.rename(place.work / "last_of_fsdp2.ckpt")
    fit(place, f"{name}_back", [*_twenty(place), f"--ckpt_path={moved}"])
    return _beside_single(place, f"{name}_back")


def single(place: Place) -> dict[str, Any]:
    """Twenty steps without a strategy."""
    return {"summary": {"fit s": fit(place, "single", _twenty(place))}}


def _twenty(place: Place, part: float = 1.0) -> list[str]:
    steps = round((6 if place.rehearse else 20) * part)
    return [
        f"--trainer.accelerator={place.accelerator}",
        f"--trainer.max_steps={steps}",
        "--trainer.limit_val_batches=1",
        "--model.scheduler=constant",
        "--model.warmup_ratio=0",
    ]


def _beside_single(place: Place, name: str) -> dict[str, Any]:
    farthest, differing = compare_runs(place, name, "single", single)
    if differing or farthest > 1e-3:
        raise AssertionError(f"{differing} mask entries differ and values by {farthest}, expected what one process has")
    frozen = check_frozen(place, name)
    summary = {"mask entries that differ": differing, "largest difference of a value": farthest}
    return {"frozen_tensors_compared": frozen, "summary": summary}
