"""The importance pass of a large model: time, memory, roofline, and the published loop beside it."""

import os
from dataclasses import replace as changed
from typing import Any

import torch

from bench_probe import cache_bytes, pass_size
from dowser_pl.importance import Probe, measure, probing_mode
from dowser_pl.methods import Layer
from dowser_pl.models.layers import find_blocks, find_layers
from gpu.place import Place
from gpu.profiling import profiled
from probe.models import PRESETS, PlainTokens, build_model
from probe.roofline import measure_ceilings, roofline
from probe.sides import GROUP, METHOD, Ours, Published, Subject

__all__ = ["importance", "profile_importance"]


def importance(place: Place) -> dict[str, Any]:
    """Our pass, a part of the published loop multiplied up, and the roofline."""
    torch.set_num_threads(os.cpu_count() or 1)
    preset = PRESETS[place.size]
    settings = Probe(preset.num_prompts, preset.num_probes, preset.num_tokens, batch_size=preset.batch_size)
    subject = probe_subject(place)
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


def probe_subject(place: Place) -> Subject:
    model = build_model(PRESETS[place.size], seed=0)
    return Subject(model, find_layers(model, None, ["attn", "mlp"]), PlainTokens(PRESETS[place.size].vocab_size))


def profile_importance(place: Place) -> dict[str, Any]:
    """Sixteen prompts with two probes each, written before, and the masks of two decoder layers."""
    preset, subject = PRESETS[place.size], probe_subject(place)
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
        return profiled(place, "importance", run)
