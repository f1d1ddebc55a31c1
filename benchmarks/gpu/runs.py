"""Runs of the command line, and what they have written compared."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dowser_pl.functional.masks import unpack
from dowser_pl.patches.patch import Patch
from gpu.place import BASE, ROOT, Place

__all__ = [
    "FEW_ROWS",
    "check_frozen",
    "command",
    "compare_masks",
    "compare_runs",
    "fit",
    "folder_of",
    "masks_of",
    "python_path",
]

SMALL = (  # of a rehearsal: one epoch of a few steps
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=12",
    "--trainer.limit_val_batches=1",
    "--data.num_eval=4",
    "--dowser.probe.num_prompts=8",
    "--checkpoint.every_n_steps=4",
)
FEW_ROWS = (*SMALL, "--dowser.rows.per_source=10", "--dowser.method.tokens=256")  # where the base writes rows as well
QUICKSTART = ["fit", "--config", str(ROOT / "configs/quickstart.yaml")]


def folder_of(place: Place, name: str) -> Path:
    """Of a run."""
    return place.work / "runs" / name


def command(place: Place, name: str, options: list[str], rehearsal: tuple[str, ...] | None = None) -> list[str]:
    """Words of the command line."""
    small = SMALL if rehearsal is None else rehearsal
    return [
        *QUICKSTART,
        "--trainer.devices=1",
        f"--trainer.default_root_dir={folder_of(place, name)}",
        f"--dowser.cache_dir={place.work / 'cache' / name}",
        *options,
        *(small if place.rehearse else ()),
    ]


def fit(place: Place, name: str, options: list[str], rehearsal: tuple[str, ...] | None = None) -> float:
    """Seconds of a run in this process; a run of that name before is removed, unless it is gone on with."""
    from dowser_pl.__main__ import main as command_line  # noqa: PLC0415

    if not any(option.startswith("--ckpt_path") for option in options):
        shutil.rmtree(folder_of(place, name), ignore_errors=True)
    start = time.perf_counter()
    try:
        command_line(command(place, name, options, rehearsal))
    except SystemExit as stop:
        if stop.code not in (0, None):
            raise AssertionError(f"fit ended with {stop.code}") from stop
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return time.perf_counter() - start


def python_path() -> str:
    """Where a process of its own finds the package."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def masks_of(place: Place, name: str) -> dict[str, Tensor]:
    """Of a run, by tensor."""
    with Patch.open(folder_of(place, name) / "patch.safetensors") as patch:
        changes = {tensor: patch.change(tensor) for tensor in patch.names}
    return {tensor: unpack(change.mask, change.shape) for tensor, change in changes.items() if change.mask is not None}


def values(place: Place, name: str) -> dict[str, Tensor]:
    """Trained values of a run, by tensor."""
    with Patch.open(folder_of(place, name) / "patch.safetensors") as patch:
        return {tensor: patch.change(tensor).values.float() for tensor in patch.names}


def compare_masks(place: Place, name: str, other: str, make: Callable[[Place], Any]) -> int:
    """How many mask entries differ between two runs; `make` runs the other where it is missing.

    Raises:
        AssertionError: if they mask other matrices.
    """
    if not (folder_of(place, other) / "patch.safetensors").is_file():  # made on another machine, or not yet
        make(place)
    one, two = masks_of(place, name), masks_of(place, other)
    if one.keys() != two.keys() or not one:
        raise AssertionError(f"{name} and {other} mask other matrices")
    return sum(int((one[tensor] != two[tensor]).sum()) for tensor in one)


def compare_runs(place: Place, name: str, other: str, make: Callable[[Place], Any]) -> tuple[float, int]:
    """Largest difference of a trained value, and how many mask entries differ."""
    differing = compare_masks(place, name, other, make)
    if differing:
        return float("nan"), differing
    one, two = values(place, name), values(place, other)
    return max(float((one[tensor] - two[tensor]).abs().max()) for tensor in one), 0


def check_frozen(place: Place, name: str) -> int:
    """How many exported tensors hold the base's bits wherever the patch does not reach.

    Raises:
        AssertionError: naming the first that does not.
    """
    from safetensors.torch import load_file  # noqa: PLC0415

    base = load_file(BASE / "model.safetensors")
    tuned = load_file(folder_of(place, name) / "model/model.safetensors")
    masks = masks_of(place, name)
    if tuned.keys() != base.keys():
        raise AssertionError(f"the exported names differ: {sorted(tuned.keys() ^ base.keys())[:3]}")
    for tensor, value in tuned.items():
        free = masks.get(tensor, torch.zeros(value.shape, dtype=torch.bool))
        expected = base[tensor].to(value.dtype)
        same = value.view(torch.int16 if value.element_size() == 2 else torch.int32) == expected.view(
            torch.int16 if value.element_size() == 2 else torch.int32
        )
        if not bool((same | free).all()):
            raise AssertionError(f"{int((~same & ~free).sum())} frozen entries of {tensor} moved")
    return len(tuned)
