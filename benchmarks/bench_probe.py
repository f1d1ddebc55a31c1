"""Time and memory of the importance pass beside the loop as it was published, and whether both give the same masks.

    python benchmarks/bench_probe.py --preset 60m --json runs/bench/probe_60m.json

Both sides score the same matrices of the same random model by the same prompts and probe vectors, text alone, and let
the same tenth of each matrix move (`ModelDowser(0.1)`, estimator `authors`); `probe/naive.py` says what the loop does.
They are interleaved in one process: our pass runs before the first batch of the loop, after the last, and evenly in
between, and the median pass is reported (of two, the slower). So is a pass with our default budget, twice the prompts
with one probe each, in batches of the default size. Both sides get the same prompts, so the ratio of seconds is that
of the rest; how long writing them took, 4 at a time as the loop does and all at once as ours does, stands beside it.
Seconds mean little on a busy machine: what share of its threads' time the process had is told.

Peak memory is that beyond the model and beyond whatever else was held when a block began; the loop is charged for its
running statistics all along. Two figures: memory in use, in a process of its own whose malloc keeps nothing back, and
memory resident while the time was taken, which holds what malloc failed to reuse as well.

About 3 minutes (60m) and 12 (250m) on 2 cores. Preset 7b needs a GPU; there the loop runs a few probes of one batch,
whose seconds are multiplied up, and no masks are compared.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dowser_pl.files.atomic import write_atomically
from dowser_pl.importance import Probe, save_factors
from dowser_pl.models.layers import find_layers
from dowser_pl.reporting.provenance import provenance
from probe.models import PRESETS, PlainTokens, Preset, build_model
from probe.roofline import PassSize, measure_ceilings, roofline
from probe.sides import GROUP, METHOD, Ours, Published, Subject, memory_in_use, peak_bytes

ROUNDING = 1e-6  # relative; scores that differ by less are equal up to the rounding of float32 sums
BUSY = 0.8  # share of its threads' time below which other processes had a part in the seconds


def run(preset: Preset) -> dict[str, Any]:
    """Everything that is measured, ready for JSON."""
    settings = Probe(preset.num_prompts, preset.num_probes, preset.num_tokens, batch_size=preset.batch_size)
    in_use = memory_in_use(preset)
    model = build_model(preset, seed=0)
    subject = Subject(model, find_layers(model, None, ["attn", "mlp"]), PlainTokens(preset.vocab_size))
    Ours(subject, dataclasses.replace(settings, num_prompts=GROUP, num_probes=1)).run()  # libraries warm up
    ours = Ours(subject, settings)
    default = Ours(subject, Probe(2 * preset.num_prompts, num_probes=1, num_tokens=preset.num_tokens))
    naive = Published(subject, settings, preset.naive_probes)
    share = interleave(ours, default, naive, preset.passes)
    size = pass_size(subject, settings)
    bound = roofline(size, measure_ceilings(model.device, preset.dtype))
    comparison = compare(ours, naive)
    sides = {
        "ours": _summary(ours) | {"cache_bytes": cache_bytes(ours)},
        "naive": {"seconds": naive.seconds(), "extrapolated": naive.extrapolated},
        "default_budget": _summary(default),
    }
    resident = {"ours": peak_bytes(ours), "naive": peak_bytes(naive)}
    for name, peak in in_use.items():
        sides[name] |= {"peak_memory_bytes": peak["total"], "peak_memory": peak, "peak_resident": resident[name]}
    return {
        "sizes": {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "target_weights": size.target_weights,
        },
        "cpu_share": share,
        **sides,
        "ratio": _ratios(sides, bound["seconds"]["total"]),
        **comparison,
        "roofline": bound,
        "problem": ours.peaks[0].problem,
    }


def interleave(ours: Ours, default: Ours, naive: Published, passes: int) -> float:
    """All of the loop, with `passes` passes of ours spread over it; at least two.

    Returns:
        The share of its threads' time that this process had.
    """
    naive.warm_up()  # ours has been
    start = time.perf_counter(), time.process_time()
    stops = [round(number * len(naive.batches) / (passes - 1)) for number in range(passes)]
    for number, batch in enumerate([*naive.batches, None]):
        for _ in range(stops.count(number)):
            ours.run()
            default.run()
        if batch is not None:
            naive.run(batch)
    naive.choose()
    return (time.process_time() - start[1]) / (time.perf_counter() - start[0]) / torch.get_num_threads()


def compare(ours: Ours, naive: Published) -> dict[str, Any]:
    """Whether prompts and masks agree, and how far from the threshold those entries are that do not.

    Raises:
        RuntimeError: if the prompts differ although they were written in float32; masks mean nothing then.
    """
    pairs = zip(ours.prompts, naive.prompts, strict=False)  # the loop may have run a part only
    prompts_equal = all(torch.equal(first.tokens, second.tokens) for first, second in pairs)
    selected = sum(int(mask.sum()) for mask in ours.masks.values())
    unknown = {"masks_equal": None, "differing_entries": None, "largest_distance_to_threshold": None}
    if naive.extrapolated:
        return {"prompts_equal": prompts_equal, "selected_entries": selected} | unknown
    if not prompts_equal:
        raise RuntimeError("the two sides wrote different prompts, so their masks cannot be compared")
    count, distance = 0, 0.0
    for name, mask in ours.masks.items():
        differing = mask != naive.masks[name]
        if bool(differing.any()):
            scores = METHOD.score(ours.layer(name)).double()
            threshold = scores[mask].max()
            count += int(differing.sum())
            distance = max(distance, float(((scores[differing] - threshold).abs() / threshold).max()))
    return {
        "prompts_equal": True,
        "selected_entries": selected,
        "masks_equal": count == 0,
        "differing_entries": count,
        "largest_distance_to_threshold": distance,
    }


def pass_size(subject: Subject, settings: Probe) -> PassSize:
    """What the work of a pass depends on."""
    text = subject.model.config.get_text_config()
    head = subject.model.get_output_embeddings().weight
    return PassSize(
        target_weights=sum(layer.weight.numel() for layer in subject.layers.values()),
        head_weights=head.numel(),
        key_value_size=2 * text.num_hidden_layers * text.hidden_size,
        itemsize=head.itemsize,
        num_prompts=int(settings.num_prompts),
        num_probes=settings.num_probes,
        num_tokens=settings.num_tokens,
        batch_size=settings.batch_size,
        group_size=GROUP,
    )


def _summary(side: Ours) -> dict[str, Any]:
    return {
        "seconds": side.median(),
        "total_of_each_pass": [seconds["total"] for seconds in side.seconds],
        "num_prompts": side.settings.num_prompts,
        "num_probes": side.settings.num_probes,
        "batch_size": side.settings.batch_size,
    }


def cache_bytes(side: Ours) -> int:
    """Size of the file that keeps the factors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "factors.safetensors"
        save_factors(side.factors, path, {})
        return path.stat().st_size


def _ratios(sides: dict[str, dict[str, Any]], roofline_seconds: float) -> dict[str, float | None]:
    whole = {side: numbers["seconds"]["total"] for side, numbers in sides.items()}
    given = {side: whole[side] - numbers["seconds"]["prompts"] for side, numbers in sides.items()}

    def memory(kind: str) -> float | None:
        ours, naive = sides["ours"][kind]["total"], sides["naive"][kind]["total"]
        return ours / naive if ours is not None and naive else None

    return {
        "seconds": given["naive"] / given["ours"],
        "default_budget_seconds": given["naive"] / given["default_budget"],
        "seconds_with_prompts": whole["naive"] / whole["ours"],
        "default_budget_seconds_with_prompts": whole["naive"] / whole["default_budget"],
        "peak_memory": memory("peak_memory"),
        "peak_resident": memory("peak_resident"),
        "roofline": whole["ours"] / roofline_seconds,
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """What was measured, for people."""
    columns = {name: result[name]["seconds"] for name in ("naive", "ours", "default_budget", "roofline")}
    phases = list(dict.fromkeys(phase for seconds in columns.values() for phase in seconds if phase != "total"))
    text = [f"{'seconds':<12}" + "".join(f"{name:>16}" for name in columns)]
    for phase in [*phases, "total"]:
        cells = [f"{seconds[phase]:.3f}" if phase in seconds else "" for seconds in columns.values()]
        text.append(f"{phase:<12}" + "".join(f"{cell:>16}" for cell in cells))
    ratio, sizes = result["ratio"], result["sizes"]
    text += [
        "",
        f"{sizes['parameters']:,} parameters, {sizes['target_weights']:,} of them scored; the cache takes "
        f"{result['ours']['cache_bytes'] / 2**20:.2f} MiB",
        f"given the prompts: naive / ours {ratio['seconds']:.2f}, "
        f"/ default budget {ratio['default_budget_seconds']:.2f}",
        f"with the writing of them: naive / ours {ratio['seconds_with_prompts']:.2f}, "
        f"/ default budget {ratio['default_budget_seconds_with_prompts']:.2f}; ours / roofline {ratio['roofline']:.2f}",
    ]
    for kind, words in (("peak_memory", "in use"), ("peak_resident", "resident")):
        if ratio[kind] is None:
            text.append(f"peak memory {words}: {result['problem'] or 'too small to compare'}")
        else:
            ours, naive = (result[side][kind]["total"] / 2**20 for side in ("ours", "naive"))
            text.append(f"peak memory {words}: ours {ours:.1f} MiB, naive {naive:.1f} MiB, ratio {ratio[kind]:.3f}")
    if result["cpu_share"] < BUSY and result["settings"]["device"] == "cpu":
        text.append(f"the process had {result['cpu_share']:.0%} of its threads' time: a busy machine, doubtful seconds")
    if result["naive"]["extrapolated"]:
        text.append("the loop ran a few probes of one batch: its seconds are multiplied up, its masks not compared")
        return text
    distance = result["largest_distance_to_threshold"]
    why = f"(below {ROUNDING:g}: rounding)" if distance < ROUNDING else "(more than rounding explains)"
    equal = "masks equal" if result["masks_equal"] else f"masks differ, at most {distance:.1e} from the threshold {why}"
    text.append(f"{equal}: {result['differing_entries']} differing of {result['selected_entries']:,} selected entries")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="60m")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; more only on an idle machine")
    parser.add_argument("--batch-size", type=int, help="prompts our pass measures at a time; the preset's by default")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers, with versions and machine")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    preset = PRESETS[options.preset]
    if options.batch_size is not None:
        preset = dataclasses.replace(preset, batch_size=options.batch_size)
    arguments = list(sys.argv[1:] if argv is None else argv)
    content = provenance("benchmarks/bench_probe.py", arguments)
    content |= {"threads": options.threads, "preset": options.preset, "settings": _settings(preset)} | run(preset)
    print("\n".join(lines(content)))
    if options.json:
        write_atomically(options.json, json.dumps(content, indent=2) + "\n")
    return 0


def _settings(preset: Preset) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if preset.device == "cuda" and torch.cuda.is_available() else preset.device
    return dataclasses.asdict(preset) | {"dtype": str(preset.dtype).removeprefix("torch."), "device": device}


if __name__ == "__main__":
    sys.exit(main())
