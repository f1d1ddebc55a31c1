"""Training of a large model: time and memory of each form beside the plan, and the command line as a whole."""

import json
import shutil
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from dowser_pl.models.layers import find_blocks
from dowser_pl.planning.activations import Batch
from dowser_pl.planning.model import MemoryPlan, decoder_of, sizes_of
from dowser_pl.planning.optimizers import optimizer_kind
from gpu.place import BASE, NotHereError, Place
from gpu.profiling import profiled
from gpu.runs import FEW_ROWS, fit, folder_of
from probe.meters import PeakMemory
from train.presets import PRESETS, Subject

__all__ = ["fit_7b", "profile_step", "training"]


def training(form: str) -> Callable[[Place], dict[str, Any]]:
    """Memory and speed of one form, beside what the plan says."""

    def run(place: Place) -> dict[str, Any]:
        forms = _forms()
        before = _allocated(place)
        subject = Subject(PRESETS[place.size])
        preset = subject.preset
        from train.memory import GradientPeak, moment_bytes  # noqa: PLC0415 - imports bitsandbytes

        watched = GradientPeak(list(subject.weights.values()))
        weights = sum(each.nbytes for each in subject.model.parameters())
        with PeakMemory(place.device) as building:
            built = forms[form](subject)
            watched.add(built.parameters)
        with PeakMemory(place.device) as first:
            built.step()  # moments are made
        peaks = [_allocated(place, peak=True) - before]
        seconds = []
        with PeakMemory(place.device) as later:
            for _ in range(preset.steps):
                place.wait()
                start = time.perf_counter()
                built.step()
                place.wait()
                seconds.append(time.perf_counter() - start)
        held = max(*peaks, _allocated(place, peak=True) - before)
        measured = {"weights": weights, "gradients": watched.peak, "moments": moment_bytes(built), **built.held()}
        planned = _plan(subject, form, built)
        tokens = preset.rows * preset.tokens / median(seconds)
        numbers = {
            "step_seconds": seconds,
            "tokens_per_second": tokens,
            "trainable": built.trainable,
            "peak_bytes": held,
            "reserved_bytes": 0 if place.rehearse else torch.cuda.max_memory_reserved(),
            "peak_while_built_beyond_weights": building.device_bytes,
            "peak_of_first_step": first.device_bytes,
            "peak_of_later_steps": later.device_bytes,
            "measured": measured,
            "planned": planned,
        }
        summary = {"step s": median(seconds), "tokens/s": tokens, "peak GB": held / 1e9}
        if planned:
            summary |= {"planned GB": planned["total"] / 1e9, "planned / peak": planned["total"] / held if held else 0}
        return numbers | {"summary": summary}

    return run


def _allocated(place: Place, peak: bool = False) -> int:
    """Bytes on the card, now or at the most since the peak was last set back; 0 on a CPU."""
    if place.rehearse:
        return 0
    return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()


def _forms() -> dict[str, Any]:
    try:
        from train.forms import FORMS  # noqa: PLC0415 - may be missing
    except ImportError as error:
        raise NotHereError(f"not installed: {error.name}") from error
    return FORMS


def _plan(subject: Subject, form: str, built: Any) -> dict[str, Any] | None:
    if form in ("lora", "full"):  # nothing is masked: `plan` has no form for them
        return None
    preset, network = subject.preset, subject.model
    layers = next(iter(find_blocks(network, subject.layers).values())).rpartition(".")[0]
    blocks = list(network.get_submodule(layers).children())
    sizes = sizes_of(network, blocks, subject.weights.values(), built.trainable)
    plan = MemoryPlan(
        sizes,
        "dense" if form == "dense" else "compact",
        optimizer_kind(built.optimizer, network.device.type == "cuda"),
        decoder=decoder_of(network, blocks, "bf16-true"),
        batch=Batch(preset.rows, preset.tokens, preset.gradient_checkpointing),
    )
    return plan.held.kinds | {"total": plan.held.total}


def fit_7b(method: str) -> Callable[[Place], dict[str, Any]]:
    """The command line on a model of 7B sizes: the world's pictures and words in a decoder with random weights."""

    def run(place: Place) -> dict[str, Any]:
        if method.startswith("qlora") and place.rehearse:
            raise NotHereError("4-bit weights are rehearsed by the tests alone")
        return _fit_7b(place, method)

    return run


def _fit_7b(place: Place, method: str) -> dict[str, Any]:
    from transformers import AutoConfig, AutoModelForImageTextToText  # noqa: PLC0415

    folder, preset = place.work / "model_7b", PRESETS[place.size].model
    if not folder.is_dir():
        config = AutoConfig.from_pretrained(BASE)
        text = config.text_config
        text.hidden_size, text.intermediate_size = preset.hidden_size, preset.intermediate_size
        text.num_hidden_layers, text.num_attention_heads = preset.num_layers, preset.num_heads
        text.num_key_value_heads, text.vocab_size = preset.num_heads, max(preset.vocab_size, text.vocab_size)
        text.head_dim = preset.hidden_size // preset.num_heads
        torch.manual_seed(0)
        with place.device:
            model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        model.cpu().save_pretrained(folder)
        del model
        for file in BASE.iterdir():
            if not (folder / file.name).exists() and file.suffix != ".safetensors":
                shutil.copy(file, folder)
    steps = 2 if place.rehearse else 12
    name = f"fit_7b_{method}"
    options = [
        *("-c", f"method/{method}"),
        f"--model.path={folder}",
        "--model.dtype=bfloat16",
        "--trainer.precision=bf16-true",
        "--model.gradient_checkpointing=true",
        "--data.batch_size=4",
        f"--trainer.max_steps={steps}",
        "--trainer.limit_val_batches=1",
        "--model.optimizer.lr=1e-5",
        f"--trainer.accelerator={place.accelerator}",
    ]
    seconds = fit(place, name, options, rehearsal=FEW_ROWS[-2:] if method == "recommended" else ())
    report = json.loads((folder_of(place, name) / "report.json").read_text())
    sizes = {
        file.name: file.stat().st_size
        for each in ("checkpoints/last.ckpt", "patch.safetensors")
        if (file := folder_of(place, name) / each).is_file()
    }
    shutil.rmtree(folder_of(place, name))
    return {
        "report": report,
        "file_bytes": sizes,
        "summary": {
            "whole command s": seconds,
            **{f"{phase} s": value for phase, value in report["seconds"].items()},
            "peak GB": (report["peak_memory_bytes"] or 0) / 1e9,
            "frozen changed": report["frozen"]["changed"],
        },
    }


def profile_step(place: Place) -> dict[str, Any]:
    """Two compact steps."""
    built = _forms()["compact"](Subject(PRESETS[place.size]))
    for _ in range(2):
        built.step()
    return profiled(place, "compact_step", lambda: [built.step() for _ in range(2)])
