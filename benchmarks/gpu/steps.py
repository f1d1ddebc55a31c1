"""The steps of `gpu_proof.py`, and the worker that runs them: a key a line on standard input, a JSON line back.

A step gives back its numbers; those under `summary` stand in the table. `NotHereError` says why
there are none to be had.
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu.importance import importance, profile_importance
from gpu.place import NotHereError, Place
from gpu.quickstart import cpu_reference, folder_and_back, quickstart, recommended, resume_after_kill, sharded, single
from gpu.tested import families, gpu_tests
from gpu.training import fit_7b, profile_step, training
from probe.roofline import measure_ceilings


def ceilings(place: Place) -> dict[str, Any]:
    """The card, and what it was measured to do."""
    found = measure_ceilings(place.device, torch.float32 if place.rehearse else torch.bfloat16)
    about: dict[str, Any] = {"device": "CPU", "torch": torch.__version__}
    if not place.rehearse:
        card = torch.cuda.get_device_properties(0)
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        about |= {"device": card.name, "memory_bytes": card.total_memory, "cuda": torch.version.cuda}
        about |= {"driver": driver.stdout.strip()}
    about |= {"flops": found.flops, "bandwidth": found.bandwidth}
    summary = {"bf16 TFLOP/s": found.flops / 1e12, "copy TB/s": found.bandwidth / 1e12}
    return about | {"summary": summary}


STEPS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "environment.ceilings": ceilings,
    "quickstart.cpu_reference": cpu_reference,
    **{f"quickstart.{each}": quickstart(each) for each in ("32-true", "bf16-mixed", "bf16-true", "16-mixed")},
    "quickstart.resume_after_kill": resume_after_kill,
    "quickstart.recommended": recommended,
    "importance.pass": importance,
    **{f"training.{each}": training(each) for each in ("compact", "compact_8bit", "dense", "full", "lora")},
    "training.fit_7b": fit_7b("model_dowser"),
    "training.fit_7b_qlora_null_space": fit_7b("qlora_null_space"),
    "training.fit_7b_recommended": fit_7b("recommended"),
    "gpu_tests.pytest": gpu_tests,
    "sharded.single": single,
    "sharded.fsdp2": sharded("fsdp2", "fsdp2"),
    "sharded.fsdp2_folder_and_back": folder_and_back,
    "sharded.fsdp1": sharded("fsdp1", "fsdp1"),
    "sharded.ddp": sharded("ddp", "ddp"),
    "families.step_and_answer": families,
    "profile.compact_step": profile_step,
    "profile.importance": profile_importance,
}


def answer(key: str, place: Place) -> dict[str, Any]:
    """One step, whatever becomes of it."""
    try:
        return {"status": "done"} | STEPS[key](place)
    except NotHereError as why:
        return {"status": "left out", "error": str(why)}
    except BaseException:  # noqa: BLE001 - told by the result
        return {"status": "failed", "error": traceback.format_exc()}
    finally:
        gc.collect()
        if not place.rehearse:
            torch.cuda.empty_cache()


def main() -> None:
    """Read keys, write results; whatever steps print goes to standard error."""
    place = Place(Path(sys.argv[1]), sys.argv[2] == "rehearse", Path(sys.argv[3]))
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            result = answer(line.strip(), place)
        results.write(json.dumps(result, default=str) + "\n")
        results.flush()


if __name__ == "__main__":
    main()
