"""Memory of one form of training, measured in a process of its own, whose malloc hands every freed block back.

State is what a step needs beside weights and activations: gradients at their peak, moments, masks, indices, values and
the copy of the base. Its bytes are counted on the tensors that are there, gradients whenever one arrives. Beside that
stands the peak memory of the process (or of the GPU) from before the form is set up, masks and all, to the end of its
second step; less the peak of a forward and backward pass alone, whose gradients are dropped as they come.
"""

import gc
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.meters import PeakMemory, nothing_kept_back
from train.forms import FORMS, Training
from train.presets import PRESETS, Subject

__all__ = ["CountingFile", "GradientPeak", "measure_memory", "measured_here", "moment_bytes"]


def measure_memory(preset: str, form: str) -> dict[str, Any]:
    """Bytes of one form, by `measured_here` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_in_use, preset, form, torch.get_num_threads()).result()


def _in_use(preset: str, form: str, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    with nothing_kept_back():
        return measured_here(preset, form)


def measured_here(preset: str, form: str) -> dict[str, Any]:
    """Bytes of one form: `state` by kind, `state_bytes`, peaks, checkpoint and patch."""
    subject = Subject(PRESETS[preset])
    device = subject.model.device
    activations = _activation_peak(subject)
    watched = GradientPeak(list(subject.weights.values()))
    with PeakMemory(device) as peak:
        training = FORMS[form](subject)
        watched.add(training.parameters)
        for _ in range(2):
            training.step()
    where = "device" if device.type == "cuda" else "host"
    held, alone = (_taken(each, where) for each in (peak, activations))
    state = {"gradients": watched.peak, "moments": moment_bytes(training), **training.held()}
    return {
        "trainable": training.trainable,
        "state": state,
        "state_bytes": sum(state.values()),
        "weight_bytes": sum(each.nbytes for each in subject.model.parameters()),
        "activation_bytes": alone,
        "peak_bytes": held,
        "peak_resident_bytes": None if held is None or alone is None else max(0, held - alone),
        "checkpoint_bytes": _checkpoint_bytes(training),
        "patch_bytes": _patch_bytes(training),
    }


class GradientPeak:
    """The most bytes that gradients took together, looked at whenever one arrives.

    Args:
        tensors: that may have a gradient; looked at before other hooks, which may take the gradient away.

    Attributes:
        peak: bytes.
    """

    def __init__(self, tensors: list[Any]) -> None:
        self.peak = 0
        self._tensors = dict.fromkeys(tensors)
        self._watch(tensors)

    def add(self, tensors: Iterable[Any]) -> None:
        """Look at further tensors."""
        new = [each for each in tensors if each not in self._tensors]
        self._tensors |= dict.fromkeys(new)
        self._watch(new)

    def look(self) -> None:
        """Count what is there now."""
        held = sum(each.grad.nbytes for each in self._tensors if each.grad is not None)
        self.peak = max(self.peak, held)

    def _watch(self, tensors: Iterable[Any]) -> None:
        for each in tensors:
            if each.requires_grad:
                each.register_post_accumulate_grad_hook(lambda _: self.look())


class CountingFile:
    """A file that only counts.

    Attributes:
        size: bytes that were written.
    """

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> int:
        """Take note of the bytes and drop them."""
        length = memoryview(data).nbytes
        self.size += length
        return length

    def flush(self) -> None:
        """Nothing to do."""


def _activation_peak(subject: Subject) -> PeakMemory:
    """Of a forward and backward pass in which no gradient outlives its hook."""

    def drop(weight: Tensor) -> None:
        weight.grad = None

    hooks = [weight.register_post_accumulate_grad_hook(drop) for weight in subject.weights.values()]
    run: Callable[[int], Any] = lambda number: subject.model(**subject.batch(number), use_cache=False).loss.backward()  # noqa: E731
    run(0)  # libraries warm up
    with PeakMemory(subject.model.device) as peak:
        run(1)
    for hook in hooks:
        hook.remove()
    gc.collect()
    return peak


def _taken(peak: PeakMemory, where: str) -> int | None:
    return peak.device_bytes if where == "device" else peak.host_bytes


def moment_bytes(training: Training) -> int:
    """Of tensors, each counted once: 8-bit states share their tables."""
    tensors = {
        value.data_ptr(): value.nbytes
        for state in training.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    }
    return sum(tensors.values())


def _checkpoint_bytes(training: Training) -> int:
    file: Any = CountingFile()
    torch.save(training.checkpoint(), file)
    return int(file.size)


def _patch_bytes(training: Training) -> int | None:
    with tempfile.TemporaryDirectory() as folder:
        path = training.save_change(Path(folder))
        return None if path is None else path.stat().st_size
