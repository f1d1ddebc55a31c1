"""Time and memory of the importance pass beside the loop as it was published, and whether both give the same masks.

    python tools/bench_probe.py --preset 60m --json runs/bench/probe_60m.json

Both sides score the same matrices of the same random model by the same prompts and probe vectors, text alone, and let
the same tenth of each matrix move (`ModelDowser(0.1)`, estimator `authors`); `probe_naive.py` says what the loop does.
They are interleaved in one process: our pass runs before the first batch of the loop, after the last, and evenly in
between, and the median pass is reported (of two, the slower). So is a pass with our default budget, twice the prompts
with one probe each. Peak memory is that beyond the model and beyond whatever else was held when a block began; the loop
is charged for its running statistics all along. About 3 minutes (60m) and 12 (250m) on 2 cores. Preset 7b needs a GPU;
there the loop runs a few probes of one batch, whose seconds are multiplied up, and no masks are compared.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from probe_bench_model import PRESETS, PlainTokens, Preset, build_model
from probe_sides import GROUP, METHOD, Ours, Published, Subject, peak_memory
from roofline import PassSize, measure_ceilings, roofline

from dowser_pl.commands.provenance import provenance
from dowser_pl.files import write_atomically
from dowser_pl.models.layers import find_layers
from dowser_pl.probing import Probe, save_factors

ROUNDING = 1e-6  # relative; scores that differ by less are equal up to the rounding of float32 sums


def run(preset: Preset) -> dict[str, Any]:
    """Everything that is measured, ready for JSON."""
    model = build_model(preset, seed=0)
    subject = Subject(model, find_layers(model, None, ["attn", "mlp"]), PlainTokens(preset.vocab_size))
    settings = Probe(preset.num_prompts, preset.num_probes, preset.num_tokens, batch_size=preset.batch_size)
    ours = Ours(subject, settings)
    default = Ours(subject, dataclasses.replace(settings, num_prompts=2 * preset.num_prompts, num_probes=1))
    naive = Published(subject, settings, preset.naive_probes)
    interleave(ours, default, naive, preset.passes)
    size = _pass_size(subject, settings)
    bound = roofline(size, measure_ceilings(model.device, preset.dtype))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "factors.safetensors"
        save_factors(ours.factors, path, {})
        cache_bytes = path.stat().st_size
    sides = {
        "ours": _summary(ours) | peak_memory([(peak, 0) for peak in ours.peaks]) | {"cache_bytes": cache_bytes},
        "naive": {"seconds": naive.seconds(), "extrapolated": naive.extrapolated} | peak_memory(naive.peaks),
        "default_budget": _summary(default),
    }
    return {
        "sizes": {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "target_weights": size.target_weights,
        },
        **sides,
        "ratio": _ratios(sides, bound["seconds"]["total"]),
        **compare(ours, naive),
        "roofline": bound,
        "problem": ours.peaks[0].problem,
    }


def interleave(ours: Ours, default: Ours, naive: Published, passes: int) -> None:
    """All of the loop, with ``passes`` passes of ours spread over it; at least two."""
    Ours(ours.subject, dataclasses.replace(ours.settings, num_prompts=GROUP, num_probes=1)).run()
    naive.warm_up()
    stops = [round(number * len(naive.batches) / (passes - 1)) for number in range(passes)]
    for number, batch in enumerate([*naive.batches, None]):
        for _ in range(stops.count(number)):
            ours.run()
            default.run()
        if batch is not None:
            naive.run(batch)
    naive.choose()


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


def _pass_size(subject: Subject, settings: Probe) -> PassSize:
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


def _ratios(sides: dict[str, dict[str, Any]], roofline_seconds: float) -> dict[str, float | None]:
    ours, naive = sides["ours"]["seconds"]["total"], sides["naive"]["seconds"]["total"]
    memory, naive_memory = (sides[side]["peak_memory_bytes"] for side in ("ours", "naive"))
    return {
        "seconds": naive / ours,
        "default_budget_seconds": naive / sides["default_budget"]["seconds"]["total"],
        "peak_memory": memory / naive_memory if memory is not None and naive_memory else None,
        "roofline": ours / roofline_seconds,
    }


def lines(result: dict[str, Any]) -> list[str]:
    """The result for people."""
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
        f"naive / ours {ratio['seconds']:.2f}, naive / default budget {ratio['default_budget_seconds']:.2f}, "
        f"ours / roofline {ratio['roofline']:.2f}",
    ]
    if ratio["peak_memory"] is None:
        text.append(result["problem"] or "peak memory: too small to compare")
    else:
        peaks = [result[side]["peak_memory_bytes"] / 2**20 for side in ("ours", "naive")]
        text.append(f"peak memory {peaks[0]:.1f} MiB, naive {peaks[1]:.1f} MiB: ratio {ratio['peak_memory']:.3f}")
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
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--batch-size", type=int, help="prompts our pass measures at a time; the preset's by default")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers, with versions and machine")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    preset = PRESETS[options.preset]
    if options.batch_size is not None:
        preset = dataclasses.replace(preset, batch_size=options.batch_size)
    result = run(preset)
    print("\n".join(lines(result)))
    if options.json:
        arguments = list(sys.argv[1:] if argv is None else argv)
        content = provenance("tools/bench_probe.py", arguments)
        content |= {"threads": options.threads, "preset": options.preset, "settings": _settings(preset)} | result
        write_atomically(options.json, json.dumps(content, indent=2) + "\n")
    return 0


def _settings(preset: Preset) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if preset.device == "cuda" else preset.device
    return dataclasses.asdict(preset) | {"dtype": str(preset.dtype).removeprefix("torch."), "device": device}


if __name__ == "__main__":
    sys.exit(main())
