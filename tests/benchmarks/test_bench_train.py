import json

import pytest
import torch

import bench_train
from bench_train import RATIOS, ratios
from dowser_pl.functional.masks import unpack
from dowser_pl.patches import Patch
from train.forms import FORMS, LR
from train.memory import CountingFile, GradientPeak, measured_here
from train.presets import PRESETS, Subject

pytestmark = pytest.mark.slow

H, F, LAYERS = 96, 256, 3  # of the preset tiny
SHAPES = [(H, H)] * 4 + [(F, H)] * 2 + [(H, F)]
ENTRIES = LAYERS * sum(o * i for o, i in SHAPES)
TRAINABLE = LAYERS * sum(round(0.1 * o * i) for o, i in SHAPES)
MATRICES = LAYERS * len(SHAPES)
STEP = 4 * MATRICES  # torch's AdamW counts steps of each parameter in a float32


@pytest.fixture(scope="module")
def rows():
    """In this process: one of its own for each form takes seconds to start."""
    return {form: measured_here("tiny", form) for form in FORMS}


def test_state_is_what_a_person_counts(rows):
    states = {form: row["state"] for form, row in rows.items()}
    assert states["full"] == {"gradients": 4 * ENTRIES, "moments": 8 * ENTRIES + STEP}
    assert states["dense"] == {
        "gradients": 4 * ENTRIES,
        "moments": 8 * ENTRIES + STEP,
        "masks": ENTRIES,
        "base": 4 * ENTRIES,
        "host": ENTRIES // 8,
    }
    compact = dict(states["compact"])
    gradients = compact.pop("gradients")
    assert compact == {
        "moments": 8 * TRAINABLE + STEP,
        "entries": 4 * TRAINABLE,
        "indices": 4 * TRAINABLE,
        "host": 4 * TRAINABLE + ENTRIES // 8,
    }
    largest = 4 * F * H  # dense, the only one there
    assert 4 * TRAINABLE < gradients <= 4 * TRAINABLE + largest
    rank = PRESETS["tiny"].rank
    adapters = LAYERS * sum(rank * (o + i) for o, i in SHAPES)
    adapter_steps = 2 * STEP
    assert states["lora"] == {
        "gradients": 4 * adapters,
        "moments": 8 * adapters + adapter_steps,
        "entries": 4 * adapters,
    }
    for form, row in rows.items():
        assert row["state_bytes"] == sum(states[form].values())
        assert row["trainable"] == {"full": ENTRIES, "dense": TRAINABLE, "lora": adapters}.get(form, TRAINABLE)
        assert row["peak_bytes"] is None or row["peak_bytes"] > 0


def test_moments_in_8_bits_where_parameters_are_large_enough(rows):
    """Here all are smaller than 4096 entries, which bitsandbytes keeps in 32 bits."""
    assert rows["compact_8bit"]["state"]["moments"] == 8 * TRAINABLE


def test_files_are_as_small_as_what_is_trained(rows):
    sizes = {form: row["checkpoint_bytes"] for form, row in rows.items()}
    weights = rows["full"]["weight_bytes"]
    assert sizes["full"] == pytest.approx(weights + 8 * ENTRIES, rel=0.05)
    packed = ENTRIES / 8 + 4 * TRAINABLE
    assert sizes["compact"] == pytest.approx(packed + 8 * TRAINABLE, rel=0.15)
    assert sizes["dense"] == pytest.approx(packed + 8 * ENTRIES, rel=0.05)
    assert rows["compact"]["patch_bytes"] == rows["dense"]["patch_bytes"] == pytest.approx(packed, rel=0.1)
    assert rows["full"]["patch_bytes"] is None


def test_the_forms_train_what_they_say(tmp_path):
    """Two steps of each: the masked ones move the same entries to nearly the same values, and no other."""
    moved, values = {}, {}
    for form in ("full", "dense", "compact"):
        subject = Subject(PRESETS["tiny"])
        before = {name: weight.detach().clone() for name, weight in subject.weights.items()}
        training = FORMS[form](subject)
        for _ in range(2):
            training.step()
        moved[form] = {name: weight.detach() != before[name] for name, weight in subject.weights.items()}
        values[form] = {name: weight.detach().clone() for name, weight in subject.weights.items()}
    masks = Subject(PRESETS["tiny"]).masks()
    for name, mask in masks.items():
        assert int(mask.sum()) == round(0.1 * mask.numel())
        assert not bool((moved["compact"][name] & ~mask).any()) and not bool((moved["dense"][name] & ~mask).any())
        assert bool(moved["compact"][name][mask].any()) and bool(moved["full"][name][~mask].any())
        torch.testing.assert_close(values["compact"][name], values["dense"][name], rtol=0, atol=LR)
    patch = training.save_change(tmp_path)
    with Patch.open(patch) as opened:
        change = opened.change(opened.names[0])
    name = opened.names[0].removesuffix(".weight")
    assert torch.equal(unpack(change.mask, change.shape), masks[name])
    assert torch.equal(change.values, values["compact"][name][masks[name]])


def test_gradients_are_counted_when_they_are_there():
    first, second = (torch.nn.Parameter(torch.ones(size)) for size in (1000, 10))
    peak = GradientPeak([first, second])
    (first.sum() * 2).backward()
    first.grad = None
    second.sum().backward()
    assert peak.peak == 4000
    first.sum().backward()
    assert peak.peak == 4040


def test_a_counting_file_counts_what_would_be_written(tmp_path):
    content = {"a": torch.arange(1000), "b": "text"}
    file = CountingFile()
    torch.save(content, file)
    torch.save(content, tmp_path / "real.pt")
    assert file.size == pytest.approx((tmp_path / "real.pt").stat().st_size, abs=256)  # padded to multiples of 64


def test_the_benchmark_writes_its_numbers(rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_train, "measure_memory", lambda preset, form: dict(rows[form]))
    path = tmp_path / "train.json"
    assert bench_train.main(["--preset", "tiny", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert {"command", "machine", "versions", "threads", "settings", "tuned_entries"} <= set(result)
    assert list(result["rows"]) == ["full", "dense", "compact", "compact_8bit", "lora"]
    keys = {"state_bytes", "step_seconds", "checkpoint_bytes", "patch_bytes", "trainable", "steps"}
    preset = PRESETS["tiny"]
    for form, row in result["rows"].items():
        assert keys | {"peak_resident_bytes"} <= set(row), form
        assert row["steps"] == len(row["seconds"]) == preset.rounds * preset.steps
        assert min(row["seconds"]) <= row["step_seconds"] <= max(row["seconds"])
    ratio, found = result["ratio"], result["rows"]
    assert set(ratio) == set(RATIOS) and ratio["memory_compact_over_dense"] < 0.25
    assert ratio["memory_compact_over_dense"] == found["compact"]["state_bytes"] / found["dense"]["state_bytes"]
    assert ratio["step_compact_over_full"] == found["compact"]["step_seconds"] / found["full"]["step_seconds"]
    out = capsys.readouterr().out
    assert "state of compact " in out and f"{ENTRIES:,} tuned entries" in out


def test_a_ratio_of_what_is_not_known_is_not_told(rows):
    known = {form: {**row, "step_seconds": 1.0, "peak_resident_bytes": None} for form, row in rows.items()}
    assert ratios(known)["peak_compact_over_dense"] is None and ratios(known)["step_lora_over_full"] == 1


def test_a_preset_for_a_gpu_says_so_without_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        bench_train.main(["--preset", "7b"])


def test_sizes_of_the_presets():
    """Of 7b, those of the text decoder of LLaVA-1.5-7B."""
    for name, expected in {"200m": 200_000_000, "7b": 32 * (4 * 4096**2 + 3 * 4096 * 11008)}.items():
        model = PRESETS[name].model
        h, f = model.hidden_size, model.intermediate_size
        assert model.num_layers * (4 * h * h + 3 * h * f) >= expected
    assert PRESETS["7b"].model.dtype == torch.bfloat16 and PRESETS["7b"].gradient_checkpointing
