"""A folder in half precision under patches of a run in full precision, and back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from dowser_pl.files.atomic import atomic_path
from dowser_pl.patches import apply
from dowser_pl.patches.apply import apply_patches, remove_patch
from dowser_pl.patches.dtypes import is_lossless
from dowser_pl.patches.safetensors_file import CODES, Slot, read_slots
from tests.patches.samples import fingerprints, load_folder, make_patch, same_bits, save_base


def save_world(tmp_path: Path, dtype=torch.float16, shard="50GB", seeds=(1,)):
    """A base in half precision, models tuned from it in float32, and their patches."""
    base = save_base(tmp_path / "base", dtype, shard)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    model.save_pretrained(tmp_path / "wide", max_shard_size=shard)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    tuned, patches = [], []
    for seed in seeds:
        model.load_state_dict(start)
        with torch.no_grad():
            model.model.language_model.layers[0].mlp.up_proj.weight[:, seed : seed + 3] += 0.1 * seed
            model.model.language_model.norm.weight += seed
        tuned.append(tmp_path / f"tuned{seed}")
        model.save_pretrained(tuned[-1], max_shard_size=shard)
        patches.append(make_patch(tmp_path / f"{seed}.safetensors", tmp_path / "wide", tuned[-1]))
    return base, tuned, patches


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(("dtype", "shard"), [(torch.float16, "50GB"), (torch.bfloat16, "40KB")])
def test_a_widened_folder_is_the_tuned_model_and_comes_back_byte_for_byte(tmp_path, dtype, shard, asked):
    base, (tuned,), (patch,) = save_world(tmp_path, dtype, shard)
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["torch_dtype"] = config["dtype"]  # as older transformers wrote it
    (base / "config.json").write_text(json.dumps(config, indent="\t") + "\r\n")
    before = fingerprints(base)
    (applied,) = apply_patches(base, [patch], tmp_path / "out", cast_to_patch=asked)
    assert fingerprints(base) == before
    assert (applied.cast, applied.widened.before) == ("float32", str(dtype).removeprefix("torch."))
    assert same_bits(load_folder(tmp_path / "out"), load_folder(tuned))
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == torch.float32
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["torch_dtype"] == "float32"
    if shard != "50GB":
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in load_folder(tmp_path / "out").values())
    after = fingerprints(tmp_path / "out")
    assert remove_patch(tmp_path / "out", tmp_path / "removed") == applied
    assert fingerprints(tmp_path / "removed") == before
    assert fingerprints(tmp_path / "out") == after
    remove_patch(tmp_path / "out")
    assert fingerprints(tmp_path / "out") == before


def test_the_widening_stays_until_the_patch_that_brought_it_comes_off(tmp_path):
    base, tuned, patches = save_world(tmp_path, seeds=(1, 2))
    apply_patches(base, patches[:1], tmp_path / "one")
    second = apply_patches(tmp_path / "one", patches[1:], tmp_path / "two")
    at_once = apply_patches(base, patches, tmp_path / "at_once")
    assert fingerprints(tmp_path / "two") == fingerprints(tmp_path / "at_once")
    assert second == at_once[1:] and second[0].widened is None and second[0].conflicts > 0
    expected = load_folder(tuned[0])
    for name, value in load_folder(tmp_path / "wide").items():
        moved = load_folder(tuned[1])[name]
        expected[name] = torch.where(moved != value, moved, expected[name])
    assert same_bits(load_folder(tmp_path / "two"), expected)
    remove_patch(tmp_path / "two")
    assert fingerprints(tmp_path / "two") == fingerprints(tmp_path / "one")
    remove_patch(tmp_path / "two")
    assert fingerprints(tmp_path / "two") == fingerprints(base)


def test_every_number_of_half_precision_comes_back(tmp_path):
    """All 65536 bit patterns but NaN; the other tensors, their order and the file's own metadata as they were."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    tensors = {"int": torch.tensor([2**40]), "eight": torch.rand(4).to(torch.float8_e4m3fn), "none": torch.empty(0, 3)}
    for dtype in (torch.float16, torch.bfloat16):
        values = patterns.view(dtype)
        tensors[str(dtype)] = values[~values.isnan()]
    tensors["scalar"] = torch.tensor(-0.0, dtype=torch.float16)
    for folder in ("base", "wide", "tuned"):
        (tmp_path / folder).mkdir()
    wide = {n: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for n, t in tensors.items()}
    save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt", "note": "\u00e9"})
    save_file(wide, tmp_path / "wide" / "model.safetensors")
    wide["torch.float16"] = wide["torch.float16"].clone()
    wide["torch.float16"][::3] = torch.arange(len(wide["torch.float16"][::3])) + 0.1
    save_file(wide, tmp_path / "tuned" / "model.safetensors")
    patch = make_patch(tmp_path / "p.safetensors", tmp_path / "wide", tmp_path / "tuned")
    (applied,) = apply_patches(tmp_path / "base", [patch], tmp_path / "out")
    assert applied.widened.before == "bfloat16, float16, float32"
    assert same_bits(load_folder(tmp_path / "out"), wide)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "note": "\u00e9"}
    remove_patch(tmp_path / "out")
    assert fingerprints(tmp_path / "out") == fingerprints(tmp_path / "base")


@pytest.mark.parametrize("old", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("new", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_loses_nothing_is_told_by_range_and_digits(old, new):
    one, other = torch.finfo(old), torch.finfo(new)
    holds = one.max <= other.max and one.smallest_normal >= other.smallest_normal and one.eps >= other.eps
    slots = {"a": Slot(Path(), "a", CODES[old], (), 0, 0), "b": Slot(Path(), "b", "I64", (), 0, 0)}
    assert is_lossless(slots, new) == holds


def test_a_folder_of_two_dtypes_stays_so_where_the_patch_fits(tmp_path):
    for folder, moved in (("base", 0), ("tuned", 1)):
        (tmp_path / folder).mkdir()
        tensors = {"half": torch.ones(8, dtype=torch.float16), "full": torch.arange(8.0) + moved}
        save_file(tensors, tmp_path / folder / "model.safetensors")
    patch = make_patch(tmp_path / "p.safetensors", tmp_path / "base", tmp_path / "tuned")
    (applied,) = apply_patches(tmp_path / "base", [patch], tmp_path / "out")
    assert applied.cast is applied.widened is None
    assert same_bits(load_folder(tmp_path / "out"), load_folder(tmp_path / "tuned"))


def flip_bit(file: Path, byte: int) -> None:
    """The lowest bit of a byte of a tensor that no patch touches."""
    slot = read_slots(file)["multi_modal_projector.linear_1.weight"]
    data = bytearray(file.read_bytes())
    data[slot.start + byte] ^= 1
    file.write_bytes(data)


def resave(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


OTHER = "multi_modal_projector.linear_1.bias"
CHANGED = {
    "model.safetensors, one more": lambda file: resave(file, lambda t: t.update(more=torch.ones(3))),
    "model.safetensors, one less": lambda file: resave(file, lambda t: t.pop(OTHER)),
    "model.safetensors, another shape": lambda file: resave(file, lambda t: t.update({OTHER: t[OTHER][None]})),
    "model.safetensors, an integer": lambda file: resave(file, lambda t: t.update({OTHER: t[OTHER].int()})),
    "model.safetensors": lambda file: flip_bit(file, 3),
    "model.safetensors, rounded away": lambda file: flip_bit(file, 0),
    "config.json": lambda file: file.write_text(file.read_text().replace("llava", "avall")),
    "model.safetensors.index.json": lambda file: file.write_text('{"weight_map": {}}'),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_was_changed_since_is_not_narrowed_away(tmp_path, name):
    base, _, (patch,) = save_world(tmp_path)
    apply_patches(base, [patch], tmp_path / "out")
    change, name = CHANGED[name], name.split(",")[0]
    change(tmp_path / "out" / name)
    before = fingerprints(tmp_path / "out")
    for out in (None, tmp_path / "removed"):
        with pytest.raises(ValueError, match=f"{name} in .*/out was changed after it was converted.*Noth"):
            remove_patch(tmp_path / "out", out)
    assert fingerprints(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.safetensors", "base", "out", "tuned1", "wide"]


def test_a_patched_folder_is_not_widened_under_its_patches(tmp_path):
    base, _, (wide,) = save_world(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
    with torch.no_grad():
        model.model.language_model.norm.weight += 1
    model.save_pretrained(tmp_path / "half")
    patch = make_patch(tmp_path / "half.safetensors", base, tmp_path / "half")
    (applied,) = apply_patches(base, [patch], tmp_path / "out")
    assert applied.widened is None
    with pytest.raises(ValueError, match="is float16 in .*out and float32 in .*take the patches of .*out off first"):
        apply_patches(tmp_path / "out", [wide], tmp_path / "out2")
    with pytest.raises(ValueError, match="is float16 in .*base and float32 in .*; add --cast"):
        apply_patches(base, [wide, patch], tmp_path / "out2")


def test_the_room_for_the_wider_folder_is_asked_for_before(tmp_path, monkeypatch):
    base, _, (patch,) = save_world(tmp_path)
    asked = []

    def noted(path, needed_bytes):
        asked.append(needed_bytes)
        return atomic_path(path, needed_bytes)

    monkeypatch.setattr(apply, "atomic_path", noted)
    apply_patches(base, [patch], tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    written = sum(path.stat().st_size for path in files if path.suffix == ".safetensors")
    assert written <= asked[0] <= 1.2 * sum(path.stat().st_size for path in files)


def test_a_damaged_record_is_named(tmp_path):
    base, _, (patch,) = save_world(tmp_path)
    apply_patches(base, [patch], tmp_path / "out")
    path = tmp_path / "out" / "dowser_patches" / "applied.json"
    content = json.loads(path.read_text())
    content["patches"][0]["widened"] = {"before": "float16"}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="applied.json is damaged"):
        remove_patch(tmp_path / "out")
