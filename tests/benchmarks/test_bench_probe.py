import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bench_probe
from bench_probe import compare
from dowser_pl.importance import Probe
from dowser_pl.models.layers import find_layers
from probe.meters import PeakMemory, PhaseClock
from probe.models import PRESETS, PlainTokens, build_model
from probe.naive import NaiveLoop, RunningMoments
from probe.sides import METHOD, Ours, Published, Subject
from tests.importance.naive import published_loop

pytestmark = pytest.mark.slow

WHERE = ("host", "device")


def test_the_benchmark_writes_its_numbers_and_the_masks_are_equal(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert bench_probe.main(["--preset", "tiny", "--threads", "1", "--batch-size", "3", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert {"command", "machine", "versions", "threads", "settings", "sizes"} <= result.keys()
    assert result["preset"] == "tiny" and result["ours"]["batch_size"] == 3
    assert result["prompts_equal"] is True and result["masks_equal"] is True and result["differing_entries"] == 0
    assert result["selected_entries"] == 3 * (4 * round(0.1 * 96 * 96) + 3 * round(0.1 * 96 * 256))
    assert result["naive"]["extrapolated"] is False and result["ours"]["cache_bytes"] > 0
    phases = {
        "naive": {"prompts", "forward", "backward", "outer", "statistics", "masks"},
        "ours": {"prompts", "probes", "masks"},
        "default_budget": {"prompts", "probes", "masks"},
        "roofline": {"prompts", "probes", "masks"},
    }
    for side, expected in phases.items():
        seconds = dict(result[side]["seconds"])
        total = seconds.pop("total")
        assert seconds.keys() == expected and total == pytest.approx(sum(seconds.values())), side
    ratio = result["ratio"]
    naive, ours, default = (result[side]["seconds"] for side in ("naive", "ours", "default_budget"))
    given = [seconds["total"] - seconds["prompts"] for seconds in (naive, ours, default)]
    assert ratio["seconds"] == pytest.approx(given[0] / given[1])
    assert ratio["default_budget_seconds"] == pytest.approx(given[0] / given[2])
    assert ratio["seconds_with_prompts"] == pytest.approx(naive["total"] / ours["total"])
    assert ratio["roofline"] > 1  # nothing is faster than the machine
    for side in ("ours", "naive"):
        peak = result[side]["peak_memory_bytes"]
        assert result["problem"] if peak is None else peak == sum(result[side]["peak_memory"][k] for k in WHERE) > 0
    assert result["default_budget"]["num_prompts"] == 16 and result["default_budget"]["num_probes"] == 1
    assert "masks equal: 0 differing" in capsys.readouterr().out


def test_a_part_of_the_loop_is_multiplied_up(monkeypatch):
    """As for models whose whole loop would take hours: one of two batches, one of two probes."""
    peak = {"total": 1, "host": 1, "device": 0}  # measured in a process of its own, by the test above
    monkeypatch.setattr(bench_probe, "memory_in_use", lambda preset: {"ours": peak, "naive": peak})
    part = replace(PRESETS["tiny"], naive_probes=1, dtype=torch.bfloat16, passes=2)
    result = bench_probe.run(part)
    assert result["naive"]["extrapolated"] is True
    assert result["masks_equal"] is result["differing_entries"] is None
    assert len(result["ours"]["total_of_each_pass"]) == 2

    subject, settings = tiny_subject()
    naive = Published(subject, settings, num_probes=1)
    naive.run(naive.batches[0])
    naive.choose()
    once = dict(naive._clock.seconds)
    expected = {phase: seconds * {"prompts": 2, "masks": 1}.get(phase, 4) for phase, seconds in once.items()}
    assert naive.seconds() == pytest.approx(expected | {"total": sum(expected.values())})


def test_the_naive_loop_is_the_published_one():
    """Against the oracle of the importance pass, which runs prompt by prompt and shares no code with it."""
    subject, settings = tiny_subject()
    prompts = subject.write(settings, range(settings.num_prompts))
    loop = NaiveLoop(subject.model.requires_grad_(True), subject.layers, settings.seed)
    for first in range(0, len(prompts), 4):
        loop.run(prompts[first : first + 4], first, settings.num_probes, PhaseClock(subject.model.device))
    oracle = published_loop(subject.model, subject.layers, prompts, settings.num_probes, settings.seed, group_size=4)
    for name, layer in subject.layers.items():
        moments = loop.moments[name]
        assert moments.count == len(prompts) // 4 * settings.num_probes
        torch.testing.assert_close(moments.mean, oracle[name].detach(), rtol=1e-4, atol=0)
        assert bool((moments.squared_deviations >= 0).all()) and moments.squared_deviations.max() > 0
        assert layer.weight.grad is None and not layer._forward_hooks and not layer._backward_hooks
    assert loop.state_bytes == 2 * 4 * sum(layer.weight.numel() for layer in subject.layers.values())


def test_running_moments_are_mean_and_squared_deviations():
    values = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0))
    moments = RunningMoments.of(values[0])
    for value in values[1:]:
        moments.add(value)
    torch.testing.assert_close(moments.mean, values.mean(dim=0))
    torch.testing.assert_close(moments.squared_deviations, values.var(dim=0, correction=0) * 5)


def test_a_differing_entry_is_counted_and_its_distance_told():
    subject, settings = tiny_subject()
    ours, naive = Ours(subject, settings), Published(subject, settings, None)
    ours.run()
    naive.prompts, naive.masks = ours.prompts, {name: mask.clone() for name, mask in ours.masks.items()}
    assert compare(ours, naive)["masks_equal"] is True
    name = next(iter(naive.masks))
    scores = METHOD.score(ours.layer(name))
    highest = int(scores.argmax())
    naive.masks[name].view(-1)[highest] = True
    result = compare(ours, naive)
    assert result["masks_equal"] is False and result["differing_entries"] == 1
    threshold = scores[ours.masks[name]].max()
    assert result["largest_distance_to_threshold"] == pytest.approx(float(scores.max() / threshold - 1), rel=1e-6)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_that_of_the_block_alone():
    size = 64 << 20
    kept = torch.ones(size, dtype=torch.uint8)
    with PeakMemory(torch.device("cpu")) as before:
        torch.ones(size, dtype=torch.uint8)
    with PeakMemory(torch.device("cpu")) as after:
        kept.add_(1)
    assert before.problem or before.host_bytes == pytest.approx(size, rel=0.1)
    assert after.problem or after.host_bytes < 1 << 20


def test_a_preset_for_a_gpu_says_so_without_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        bench_probe.main(["--preset", "7b", "--threads", "1"])


def tiny_subject():
    preset = PRESETS["tiny"]
    model = build_model(preset, seed=0)
    subject = Subject(model, find_layers(model, None, ["attn", "mlp"]), PlainTokens(preset.vocab_size))
    return subject, Probe(preset.num_prompts, preset.num_probes, preset.num_tokens, batch_size=preset.batch_size)
