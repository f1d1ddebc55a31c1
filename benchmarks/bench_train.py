"""State, time and files of the forms of training beside each other: full, dense masked, compact, compact 8-bit, LoRA.

    python benchmarks/bench_train.py --preset 200m --json runs/bench/train_200m.json
    python benchmarks/bench_train.py --preset 60m --strategy fsdp2   # what each of two processes holds

All forms train the same matrices of the same random LLaVA by the same batches of text with AdamW; a tenth of each
matrix may move in the masked ones, and LoRA has rank 16. Memory is measured in a process per form (`train/memory.py`).
Steps are timed in one process: the forms take turns, each is built, makes a step that is not timed and a few that are,
and is gone before the next begins. A step is everything from zeroing gradients to writing values back.

About 2 minutes (60m) and 6 (200m) on one thread. Preset 7b needs a GPU of 141 GB.
"""

import argparse
import dataclasses
import gc
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dowser_pl.files.atomic import write_atomically
from dowser_pl.reporting.provenance import provenance
from train.forms import FORMS
from train.memory import measure_memory
from train.presets import PRESETS, Subject, TrainPreset
from train.strategy import STRATEGIES, measure_strategy, strategy_lines

BUSY = 0.8  # share of its threads' time below which other processes had a part in the seconds
COLUMNS = {
    "trainable": "trainable",
    "state_bytes": "state MiB",
    "peak_resident_bytes": "peak MiB",
    "step_seconds": "step s",
    "checkpoint_bytes": "checkpoint MiB",
    "patch_bytes": "patch MiB",
}
RATIOS = {  # name -> form, other form, number
    "memory_compact_over_dense": ("compact", "dense", "state_bytes"),
    "memory_compact_8bit_over_dense": ("compact_8bit", "dense", "state_bytes"),
    "memory_compact_over_full": ("compact", "full", "state_bytes"),
    "peak_compact_over_dense": ("compact", "dense", "peak_resident_bytes"),
    "step_compact_over_full": ("compact", "full", "step_seconds"),
    "step_compact_8bit_over_full": ("compact_8bit", "full", "step_seconds"),
    "step_compact_over_dense": ("compact", "dense", "step_seconds"),
    "step_lora_over_full": ("lora", "full", "step_seconds"),
    "checkpoint_compact_over_full": ("compact", "full", "checkpoint_bytes"),
    "checkpoint_compact_over_lora": ("compact", "lora", "checkpoint_bytes"),
    "patch_compact_over_lora": ("compact", "lora", "patch_bytes"),
}


def run(name: str) -> dict[str, Any]:
    """Everything that is measured, ready for JSON.

    Raises:
        SystemExit: if the preset needs a GPU and there is none.
    """
    preset = PRESETS[name]
    if preset.model.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this preset needs a CUDA device, and torch sees none; choose --preset 60m or 200m")
    rows: dict[str, dict[str, Any]] = {form: measure_memory(name, form) for form in FORMS}
    seconds, share = time_steps(preset)
    for form, row in rows.items():
        row |= {"step_seconds": statistics.median(seconds[form]), "seconds": seconds[form], "steps": len(seconds[form])}
    subject_entries = rows["full"]["trainable"]
    return {"tuned_entries": subject_entries, "cpu_share": share, "rows": rows, "ratio": ratios(rows)}


def time_steps(preset: TrainPreset) -> tuple[dict[str, list[float]], float]:
    """Seconds of each timed step by form, and the share of its threads' time that this process had."""
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    start = time.perf_counter(), time.process_time()
    for _ in range(preset.rounds):
        for form, build in FORMS.items():
            training = build(Subject(preset))
            training.step()  # moments are made
            for _ in range(preset.steps):
                seconds[form].append(_timed(training.step, training.model.device))
            del training
            gc.collect()
            if preset.model.device == "cuda":
                torch.cuda.empty_cache()
    share = (time.process_time() - start[1]) / (time.perf_counter() - start[0]) / torch.get_num_threads()
    return seconds, share


def ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Those of `RATIOS`; None where a number is not known."""
    found: dict[str, float | None] = {}
    for name, (form, other, number) in RATIOS.items():
        over, under = rows[form][number], rows[other][number]
        found[name] = over / under if over is not None and under else None
    return found


def _timed(step: Any, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def lines(result: Mapping[str, Any]) -> list[str]:
    """What was measured, for people."""
    settings = result["settings"]
    text = [
        f"{result['tuned_entries']:,} tuned entries in {settings['model']['dtype']}, {settings['rows']} x "
        f"{settings['tokens']} tokens, update ratio {settings['update_ratio']}, LoRA rank {settings['rank']}",
        f"{'':<14}" + "".join(f"{title:>16}" for title in COLUMNS.values()),
    ]
    for form, row in result["rows"].items():
        text.append(f"{form:<14}" + "".join(f"{_cell(number, row[number]):>16}" for number in COLUMNS))
    text.append("")
    for form, row in result["rows"].items():
        kinds = ", ".join(f"{kind} {_cell('bytes', value)}" for kind, value in row["state"].items())
        text.append(f"state of {form:<13} {kinds}")
    text += ["", *(f"{name:<32}{'-' if v is None else f'{v:.3f}':>8}" for name, v in result["ratio"].items())]
    if result["cpu_share"] < BUSY and settings["model"]["device"] == "cpu":
        text.append(f"the process had {result['cpu_share']:.0%} of its threads' time: a busy machine, doubtful seconds")
    return text


def _cell(number: str, value: float | None) -> str:
    if value is None:
        return "-"
    if number == "trainable":
        return f"{value:,}"
    return f"{value:.3f}" if number == "step_seconds" else f"{value / 2**20:.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="60m")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; more only on an idle machine")
    parser.add_argument(
        "--strategy", choices=STRATEGIES, help="instead, the bytes of each of several processes under it"
    )
    parser.add_argument("--ranks", type=int, default=2, help="processes, with --strategy")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers, with versions and machine")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    content = provenance("benchmarks/bench_train.py", list(sys.argv[1:] if argv is None else argv))
    content |= {"threads": options.threads, "preset": options.preset, "settings": _settings(PRESETS[options.preset])}
    if options.strategy:
        content |= measure_strategy(options.preset, options.strategy, options.ranks)
        print("\n".join(strategy_lines(content)))
    else:
        content |= run(options.preset)
        print("\n".join(lines(content)))
    if options.json:
        write_atomically(options.json, json.dumps(content, indent=2) + "\n")
    return 0


def _settings(preset: TrainPreset) -> dict[str, Any]:
    settings = dataclasses.asdict(preset)
    settings["model"]["dtype"] = str(preset.model.dtype).removeprefix("torch.")
    return settings


if __name__ == "__main__":
    sys.exit(main())
