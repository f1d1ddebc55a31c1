"""The steps of ``gpu_proof.py``, and the worker that runs them: a key a line on standard input, a JSON line back.

A step gives back its numbers; those under ``summary`` stand in the table. ``NotHereError`` says why
there are none to be had.
"""
# ruff: noqa: E402

import contextlib
import gc
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "tools"), str(ROOT)]

import torch
from bench_probe import cache_bytes, pass_size
from peak_memory import PeakMemory
from probe_bench_model import PRESETS, PlainTokens, build_model
from probe_sides import GROUP, METHOD, Ours, Published, Subject
from roofline import measure_ceilings, roofline
from torch import Tensor
from train_presets import PRESETS as TRAINED
from train_presets import Subject as TrainSubject

from dowser_pl.functional.masks import unpack
from dowser_pl.importance import Probe, measure, probing_mode
from dowser_pl.methods import Layer
from dowser_pl.models.layers import find_blocks, find_layers
from dowser_pl.models.sources import EMBEDDED
from dowser_pl.patches.patch import Patch
from dowser_pl.planning.activations import Batch
from dowser_pl.planning.model import MemoryPlan, decoder_of, sizes_of
from dowser_pl.planning.optimizers import optimizer_kind

BASE = EMBEDDED["embedded:world"]
SMALL = (  # of a rehearsal: one epoch of a few steps
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=24",
    "--trainer.limit_val_batches=1",
    "--dowser.probe.num_prompts=8",
    "--checkpoint.every_n_steps=8",
)
QUICKSTART = ["fit", "--config", str(ROOT / "configs/quickstart.yaml")]


class NotHereError(Exception):
    """Why a step cannot be made here."""


@dataclass(frozen=True)
class Place:
    """Where and how large.

    Args:
        work: folder of all runs.
        rehearse: small, on a CPU.
        traces: folder of profiles.
    """

    work: Path
    rehearse: bool
    traces: Path

    @property
    def device(self) -> torch.device:
        """That the model lies on."""
        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def accelerator(self) -> str:
        """As Lightning names it."""
        return "cpu" if self.rehearse else "gpu"

    @property
    def size(self) -> str:
        """Preset of the models with random weights."""
        return "tiny" if self.rehearse else "7b"

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if not self.rehearse:
            torch.cuda.synchronize()


# ==== environment


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


# ==== quickstart


def cpu_reference(place: Place) -> dict[str, Any]:
    """The masks that a CPU makes in float32."""
    _fit(place, "cpu", ["--trainer.accelerator=cpu", "--trainer.max_steps=1", "--trainer.limit_val_batches=1"])
    return {"summary": {"trainable entries": sum(int(mask.sum()) for mask in _masks(place, "cpu").values())}}


def quickstart(precision: str) -> Callable[[Place], dict[str, Any]]:
    """The README's job in one precision; in 32-true as it is, else two epochs of it."""

    def run(place: Place) -> dict[str, Any]:
        options = [f"--trainer.precision={precision}"]
        if precision != "32-true":
            options.append("--trainer.max_epochs=2")
        seconds = _fit(place, precision, [*options, f"--trainer.accelerator={place.accelerator}"])
        report = json.loads((_folder(place, precision) / "report.json").read_text())
        differing = _compare_masks(place, precision)
        if precision == "32-true" and differing > 100:
            raise AssertionError(f"{differing} mask entries differ from the CPU's, expected hardly any in float32")
        return {
            "report": report,
            "differing_mask_entries": differing,
            "frozen_tensors_compared": _check_frozen(place, precision),
            "summary": {
                "H-score": report["h_score"]["after"] if isinstance(report["h_score"], dict) else report["h_score"],
                "frozen entries": "bit-identical",
                "mask entries that differ from the CPU's": differing,
                "fit s": seconds,
            },
        }

    return run


def resume_after_kill(place: Place) -> dict[str, Any]:
    """Kill a run when its first checkpoint is there, go on from it, and compare with the unbroken run."""
    name, options = "killed", ["--trainer.precision=32-true", f"--trainer.accelerator={place.accelerator}"]
    command = [sys.executable, "-m", "dowser_pl", *_command(place, name, options)]
    last = _folder(place, name) / "checkpoints/last.ckpt"
    process = subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr, env=os.environ | {"PYTHONPATH": _path()})
    deadline = time.monotonic() + 90
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if not last.exists():
        process.kill()
        raise AssertionError("no checkpoint was written before the run ended or 90 s were over")
    process.send_signal(signal.SIGKILL)
    process.wait()
    _fit(place, name, [*options, "--ckpt_path=last"])
    farthest, differing = _compare_runs(place, name, "32-true")
    return {
        "largest_difference": farthest,
        "frozen_tensors_compared": _check_frozen(place, name),
        "summary": {"mask entries that differ": differing, "largest difference of a value": farthest},
    }


# ==== importance


def importance(place: Place) -> dict[str, Any]:
    """Our pass, a part of the published loop multiplied up, and the roofline."""
    torch.set_num_threads(os.cpu_count() or 1)
    preset = PRESETS[place.size]
    settings = Probe(preset.num_prompts, preset.num_probes, preset.num_tokens, batch_size=preset.batch_size)
    subject = _probe_subject(place)
    model, layers = subject.model, subject.layers
    Ours(subject, changed(settings, num_prompts=GROUP, num_probes=1)).run()  # libraries warm up
    ours = Ours(subject, settings)
    for _ in range(3):
        ours.run()
    numbers: dict[str, Any] = {"passes": ours.seconds, "seconds": ours.median()}
    numbers["peak_bytes"] = {"device": ours.peaks[-1].device_bytes, "host": ours.peaks[-1].host_bytes}
    numbers["cache_bytes"] = cache_bytes(ours)
    size = pass_size(subject, settings)
    numbers["roofline"] = roofline(size, measure_ceilings(place.device, preset.dtype))
    numbers["target_weights"] = size.target_weights
    ours.masks = {}
    default = Ours(subject, Probe(2 * preset.num_prompts, num_probes=1, num_tokens=preset.num_tokens))
    default.run()
    numbers["default_budget"] = {"seconds": default.seconds[-1], "batch_size": default.settings.batch_size}
    default.masks = {}
    numbers["loop"] = _loop(subject, settings)
    total = numbers["seconds"]["total"]
    numbers["summary"] = {
        "pass s": total,
        **{f"{phase} s": value for phase, value in numbers["seconds"].items() if phase != "total"},
        "peak GB beyond the weights": numbers["peak_bytes"]["device"] / 1e9,
        "cache MB": numbers["cache_bytes"] / 1e6,
        "times the roofline": total / numbers["roofline"]["seconds"]["total"],
        "loop s (extrapolated)": numbers["loop"]["seconds"],
        "loop / pass": numbers["loop"]["seconds"] / total,
        "default budget s": default.seconds[-1]["total"],
        "matrices": len(layers),
        "parameters": sum(each.numel() for each in model.parameters()),
    }
    return numbers


def _loop(subject: Subject, settings: Probe) -> dict[str, Any]:
    """Two probes of one batch, products and statistics of one decoder layer, multiplied up."""
    first = next(iter(find_blocks(subject.model, subject.layers).values()))
    some = {name: layer for name, layer in subject.layers.items() if name.startswith(f"{first}.")}
    weights = [sum(layer.weight.numel() for layer in each.values()) for each in (subject.layers, some)]
    loop = Published(changed(subject, layers=some), settings, num_probes=2)
    loop.warm_up()
    loop.run(loop.batches[0])
    loop.choose()
    phases = loop.seconds()  # multiplied up to all batches and probes
    by_weight = {"outer", "statistics", "masks"}
    share = weights[0] / weights[1]
    phases = {name: value * (share if name in by_weight else 1) for name, value in phases.items() if name != "total"}
    return {
        "phases": phases,
        "seconds": sum(phases.values()),
        "extrapolated_from": f"2 of {settings.num_probes} probes, one of {settings.num_prompts // GROUP} batches, "
        f"statistics of {len(some)} of {len(subject.layers)} matrices",
        "threads": torch.get_num_threads(),
    }


def _probe_subject(place: Place) -> Subject:
    model = build_model(PRESETS[place.size], seed=0)
    return Subject(model, find_layers(model, None, ["attn", "mlp"]), PlainTokens(PRESETS[place.size].vocab_size))


# ==== training


def training(form: str) -> Callable[[Place], dict[str, Any]]:
    """Memory and speed of one form, beside what the plan says."""

    def run(place: Place) -> dict[str, Any]:
        forms = _forms()
        before = _allocated(place)
        subject = TrainSubject(TRAINED[place.size])
        preset = subject.preset
        from train_memory import GradientPeak, moment_bytes  # noqa: PLC0415 - imports bitsandbytes

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
        from train_forms import FORMS  # noqa: PLC0415 - may be missing
    except ImportError as error:
        raise NotHereError(f"not installed: {error.name}") from error
    return FORMS


def _plan(subject: TrainSubject, form: str, built: Any) -> dict[str, Any] | None:
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


def fit_7b(place: Place) -> dict[str, Any]:
    """The command line on a model of 7B sizes: the world's pictures and words in a decoder with random weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText  # noqa: PLC0415

    folder, preset = place.work / "model_7b", PRESETS[place.size]
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
    options = [
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
    seconds = _fit(place, "fit_7b", options, rehearsal=())
    report = json.loads((_folder(place, "fit_7b") / "report.json").read_text())
    sizes = {
        file.name: file.stat().st_size
        for name in ("checkpoints/last.ckpt", "patch.safetensors")
        if (file := _folder(place, "fit_7b") / name).is_file()
    }
    for run in (_folder(place, "fit_7b"), folder):
        shutil.rmtree(run)
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


# ==== tests


def gpu_tests(place: Place) -> dict[str, Any]:
    """``pytest -m gpu``."""
    result = place.work / "gpu_tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-q", f"--junitxml={result}"]
    ended = subprocess.run(
        [*command, "tests/test_gpu.py", "tests/functional/test_selection.py"],
        check=False,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": _path()},
    )
    if not result.is_file():
        raise AssertionError(ended.stdout[-4000:])
    suite = ElementTree.parse(result).getroot().find("testsuite")
    assert suite is not None
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    sys.stderr.write(ended.stdout)
    cases = [case for case in suite.iter("testcase") if case.find("failure") is not None]
    failed = {f"{case.get('classname')}::{case.get('name')}": _message(case) for case in cases}
    if count["failures"] + count["errors"]:
        raise AssertionError(f"{count}: {json.dumps(failed, indent=1)}\n{ended.stdout[-3000:]}")
    skips = [skip.get("message", "") for skip in suite.iter("skipped")]
    if not place.rehearse and any("needs a GPU" in why for why in skips):
        raise AssertionError(f"tests were skipped for want of a GPU on a GPU:\n{ended.stdout[-3000:]}")
    return {"summary": count, "left_out": sorted(set(skips))}  # such as what needs bitsandbytes, where it is missing


def _message(case: ElementTree.Element) -> str:
    failure = case.find("failure")
    return "" if failure is None else (failure.text or "")[-1500:]


# ==== sharded


def sharded(name: str, config: str, extra: tuple[str, ...] = ()) -> Callable[[Place], dict[str, Any]]:
    """Twenty steps of the quickstart under a strategy, on one device, beside those of no strategy."""

    def run(place: Place) -> dict[str, Any]:
        seconds = _fit(place, name, ["-c", f"strategy/{config}", *_twenty(place), *extra])
        return _beside_single(place, name) | {"fit_seconds": seconds}

    return run


def folder_and_back(place: Place) -> dict[str, Any]:
    """Ten steps under FSDP2 into a checkpoint of shards; one plain process goes on from it to twenty."""
    name = "fsdp2_folder"
    apart = "--trainer.strategy.init_args.save_distributed_checkpoint=true"
    half = [option.replace("max_steps=20", "max_steps=10") for option in _twenty(place)]
    _fit(place, name, ["-c", "strategy/fsdp2", *half, apart])
    last = _folder(place, name) / "checkpoints/last.ckpt"
    if not last.is_dir():
        raise AssertionError(f"{last} is no folder of shards")
    moved = last.rename(place.work / "last_of_fsdp2.ckpt")
    _fit(place, f"{name}_back", [*_twenty(place), f"--ckpt_path={moved}"])
    return _beside_single(place, f"{name}_back")


def single(place: Place) -> dict[str, Any]:
    """Twenty steps without a strategy."""
    return {"summary": {"fit s": _fit(place, "single", _twenty(place))}}


def _twenty(place: Place) -> list[str]:
    return [
        f"--trainer.accelerator={place.accelerator}",
        "--trainer.max_steps=20",
        "--trainer.limit_val_batches=1",
        "--model.scheduler=constant",
        "--model.warmup_ratio=0",
    ]


def _beside_single(place: Place, name: str) -> dict[str, Any]:
    farthest, differing = _compare_runs(place, name, "single")
    if differing or farthest > 1e-3:
        raise AssertionError(f"{differing} mask entries differ and values by {farthest}, expected what one process has")
    frozen = _check_frozen(place, name)
    summary = {"mask entries that differ": differing, "largest difference of a value": farthest}
    return {"frozen_tensors_compared": frozen, "summary": summary}


# ==== families


def families(place: Place) -> dict[str, Any]:
    """Every family, small, in bfloat16: a masked step, frozen entries compared, an answer."""
    from tests.test_gpu import family_step  # noqa: PLC0415
    from tests.tiny_models import FAMILIES  # noqa: PLC0415

    losses, failed = {}, {}
    for family in FAMILIES:
        try:
            losses[family] = family_step(family, place.device)
        except Exception:  # noqa: BLE001 - the next family is tried all the same
            failed[family] = traceback.format_exc()[-1500:]
    if failed:
        raise AssertionError(json.dumps(failed, indent=1))
    return {"losses": losses, "summary": {"families": ", ".join(losses)}}


# ==== profile


def profile_step(place: Place) -> dict[str, Any]:
    """Two compact steps."""
    built = _forms()["compact"](TrainSubject(TRAINED[place.size]))
    for _ in range(2):
        built.step()
    return _profiled(place, "compact_step", lambda: [built.step() for _ in range(2)])


def profile_importance(place: Place) -> dict[str, Any]:
    """Sixteen prompts with two probes each, written before, and the masks of two decoder layers."""
    preset, subject = PRESETS[place.size], _probe_subject(place)
    settings = Probe(16, 2, preset.num_tokens, batch_size=16)
    layers = dict(list(subject.layers.items())[:14])
    with probing_mode(subject.model), torch.enable_grad():
        prompts = subject.write(settings, range(16))

        def run() -> None:
            measured = measure(subject.model, subject.layers, prompts, settings, METHOD.needs)
            factors = measured.grouped(METHOD.prompts_per_row)
            for name, layer in layers.items():
                METHOD.mask(Layer(name, layer.weight, **factors.layers[name]))

        run()
        return _profiled(place, "importance", run)


def _profiled(place: Place, name: str, run: Callable[[], Any]) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

    kinds = [ProfilerActivity.CPU] + ([] if place.rehearse else [ProfilerActivity.CUDA])
    place.wait()
    with profile(activities=kinds) as profiler:
        start = time.perf_counter()
        run()
        place.wait()
        wall = time.perf_counter() - start
    averages = profiler.key_averages()
    on_device = [each for each in averages if each.self_device_time_total > 0 and not each.cpu_time_total]
    rows = sorted(on_device or averages, key=lambda each: -(each.self_device_time_total or each.self_cpu_time_total))
    top = [
        {
            "name": each.key[:120],
            "calls": each.count,
            "milliseconds": (each.self_device_time_total or each.self_cpu_time_total) / 1e3,
        }
        for each in rows[:15]
    ]
    waits = {
        each.key: {"calls": each.count, "milliseconds": each.self_cpu_time_total / 1e3}
        for each in averages
        if each.key.startswith(("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy", "aten::item"))
    }
    busy = sum(each.self_device_time_total for each in on_device) / 1e6
    numbers: dict[str, Any] = {"wall_seconds_profiled": wall, "device_busy_seconds": busy, "top": top, "waits": waits}
    trace = place.work / f"{name}.trace.json"
    profiler.export_chrome_trace(str(trace))
    packed = place.traces / f"{name}.trace.json.gz"
    with trace.open("rb") as source, gzip.open(packed, "wb") as target:
        shutil.copyfileobj(source, target)
    trace.unlink()
    if packed.stat().st_size >= 16 << 20:
        packed.unlink()
    numbers["summary"] = {
        "wall s": wall,
        "share of it that the device was busy": busy / wall,
    }
    return numbers


# ==== runs of the command line


def _folder(place: Place, name: str) -> Path:
    return place.work / "runs" / name


def _command(place: Place, name: str, options: list[str], rehearsal: tuple[str, ...] | None = None) -> list[str]:
    small = SMALL if rehearsal is None else rehearsal
    return [
        *QUICKSTART,
        "--trainer.devices=1",
        f"--trainer.default_root_dir={_folder(place, name)}",
        f"--dowser.cache_dir={place.work / 'cache' / name}",
        *options,
        *(small if place.rehearse else ()),
    ]


def _fit(place: Place, name: str, options: list[str], rehearsal: tuple[str, ...] | None = None) -> float:
    """Seconds of a run in this process; a run of that name before is removed, unless it is gone on with."""
    from dowser_pl.__main__ import main as command_line  # noqa: PLC0415

    if not any(option.startswith("--ckpt_path") for option in options):
        shutil.rmtree(_folder(place, name), ignore_errors=True)
    start = time.perf_counter()
    try:
        command_line(_command(place, name, options, rehearsal))
    except SystemExit as stop:
        if stop.code not in (0, None):
            raise AssertionError(f"fit ended with {stop.code}") from stop
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return time.perf_counter() - start


def _path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _masks(place: Place, name: str) -> dict[str, Tensor]:
    with Patch.open(_folder(place, name) / "patch.safetensors") as patch:
        changes = {tensor: patch.change(tensor) for tensor in patch.names}
    return {tensor: unpack(change.mask, change.shape) for tensor, change in changes.items() if change.mask is not None}


def _values(place: Place, name: str) -> dict[str, Tensor]:
    with Patch.open(_folder(place, name) / "patch.safetensors") as patch:
        return {tensor: patch.change(tensor).values.float() for tensor in patch.names}


def _compare_masks(place: Place, name: str, other: str = "cpu") -> int:
    if not (_folder(place, other) / "patch.safetensors").is_file():  # made on another machine, or not yet
        {"cpu": cpu_reference, "32-true": quickstart("32-true"), "single": single}[other](place)
    one, two = _masks(place, name), _masks(place, other)
    if one.keys() != two.keys() or not one:
        raise AssertionError(f"{name} and {other} mask other matrices")
    return sum(int((one[tensor] != two[tensor]).sum()) for tensor in one)


def _compare_runs(place: Place, name: str, other: str) -> tuple[float, int]:
    """Largest difference of a trained value, and how many mask entries differ."""
    differing = _compare_masks(place, name, other)
    if differing:
        return float("nan"), differing
    one, two = _values(place, name), _values(place, other)
    return max(float((one[tensor] - two[tensor]).abs().max()) for tensor in one), 0


def _check_frozen(place: Place, name: str) -> int:
    """How many exported tensors hold the base's bits wherever the patch does not reach.

    Raises:
        AssertionError: naming the first that does not.
    """
    from safetensors.torch import load_file  # noqa: PLC0415

    base = load_file(BASE / "model.safetensors")
    tuned = load_file(_folder(place, name) / "model/model.safetensors")
    masks = _masks(place, name)
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


STEPS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "environment.ceilings": ceilings,
    "quickstart.cpu_reference": cpu_reference,
    **{f"quickstart.{each}": quickstart(each) for each in ("32-true", "bf16-mixed", "bf16-true", "16-mixed")},
    "quickstart.resume_after_kill": resume_after_kill,
    "importance.pass": importance,
    **{f"training.{each}": training(each) for each in ("compact", "compact_8bit", "dense", "full", "lora")},
    "training.fit_7b": fit_7b,
    "gpu_tests.pytest": gpu_tests,
    "sharded.single": single,
    "sharded.fsdp2": sharded("fsdp2", "fsdp2"),
    "sharded.fsdp2_folder_and_back": folder_and_back,
    "sharded.fsdp1": sharded("fsdp1", "fsdp"),
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
