import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from dowser_pl.patches import Patch, apply
from dowser_pl.patches.apply import apply_patches, remove_patch
from dowser_pl.patches.conversion import rewrite
from dowser_pl.patches.loaded import apply_to_model
from dowser_pl.patches.patch import save_patch
from dowser_pl.patches.safetensors_file import read_slots, write
from tests.patches.samples import (
    fingerprints,
    load_folder,
    make_patch,
    naive_changes,
    raw,
    same_bits,
    save_base,
    save_tuned,
    tuned_llava,
)
from tests.tiny_models import tiny_llava


@pytest.fixture
def folders(tmp_path):
    """Base, tuned model and patch, in float32 and one shard."""
    base, tuned = save_base(tmp_path / "base"), save_tuned(tmp_path / "tuned")
    return base, tuned, make_patch(tmp_path / "one.safetensors", base, tuned)


KINDS = [(torch.float32, "50GB"), (torch.bfloat16, "40KB"), (torch.float16, "50GB")]


@pytest.mark.parametrize(("dtype", "shard"), KINDS)
def test_applying_gives_the_tuned_model_and_removing_the_base(tmp_path, dtype, shard):
    base, tuned = save_base(tmp_path / "base", dtype, shard), save_tuned(tmp_path / "tuned", dtype, shard=shard)
    assert (base / "model.safetensors.index.json").exists() == (shard != "50GB")
    patch, out = make_patch(tmp_path / "one.safetensors", base, tuned), tmp_path / "out"
    before = fingerprints(base)
    (applied,) = apply_patches(base, [patch], out)
    assert fingerprints(base) == before
    assert same_bits(load_folder(out), load_folder(tuned))
    after = fingerprints(out)
    weights = {name for name in before if name.endswith(".safetensors")}
    assert {name for name in before if before[name] != after[name]} <= weights
    assert set(after) - set(before) == {"dowser_patches/applied.json", "dowser_patches/01.undo.safetensors"}
    loaded = AutoModelForImageTextToText.from_pretrained(out, dtype="auto")
    assert same_bits(dict(loaded.state_dict()), dict(tuned_llava(dtype).state_dict()))
    changes = naive_changes(base, tuned)
    assert applied.entries == sum(change.values.numel() for change in changes.values())
    assert set(applied.tensors) == set(changes)
    listed = json.loads((out / "dowser_patches" / "applied.json").read_text())["patches"]
    assert [(entry["file"], entry["entries"], entry["conflicts"]) for entry in listed] == [
        ("one.safetensors", applied.entries, 0)
    ]
    assert listed[0]["method"] == {"name": "test"}
    removed = remove_patch(out, tmp_path / "removed", patch)
    assert removed == applied
    assert fingerprints(tmp_path / "removed") == before
    assert fingerprints(out) == after
    remove_patch(out)
    assert fingerprints(out) == before


def test_untouched_bytes_keep_their_place(folders, tmp_path):
    base, tuned, patch = folders
    apply_patches(base, [patch], tmp_path / "out")
    old, new = (folder / "model.safetensors" for folder in (base, tmp_path / "out"))
    assert old.stat().st_size == new.stat().st_size
    differing = {i for i, (a, b) in enumerate(zip(old.read_bytes(), new.read_bytes(), strict=True)) if a != b}
    slots = read_slots(old)
    touched = {
        i
        for name in naive_changes(base, tuned)
        for i in range(slots[name].start, slots[name].start + slots[name].nbytes)
    }
    assert differing
    assert differing <= touched


def flip_bit(file: Path, name: str) -> None:
    slot = read_slots(file)[name]
    data = bytearray(file.read_bytes())
    data[slot.start + slot.nbytes - 1] ^= 1
    file.write_bytes(data)


def test_another_base_is_refused_before_anything_is_written(folders, tmp_path, monkeypatch):
    base, tuned, patch = folders
    last = sorted(naive_changes(base, tuned))[-1]
    flip_bit(base / "model.safetensors", last)
    monkeypatch.setattr(apply, "copy_model", lambda *_: pytest.fail("something was written"))
    with pytest.raises(ValueError, match=f"another base than .*: {last} has digest .*Nothing was written.*tiny"):
        apply_patches(base, [patch], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("step", ["write", "write_applied"])
def test_an_interruption_leaves_nothing(folders, tmp_path, monkeypatch, step):
    base, _, patch = folders

    def interrupted(*_):
        raise KeyboardInterrupt

    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(apply, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        apply_patches(base, [patch], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_tensor_changed_since_is_not_removed_over(folders, tmp_path):
    base, tuned, patch = folders
    apply_patches(base, [patch], tmp_path / "out")
    name = sorted(naive_changes(base, tuned))[0]
    flip_bit(tmp_path / "out" / "model.safetensors", name)
    before = fingerprints(tmp_path / "out")
    with pytest.raises(ValueError, match=f"{name} in .* was changed after the patch was applied"):
        remove_patch(tmp_path / "out")
    assert fingerprints(tmp_path / "out") == before


def test_a_damaged_undo_file_is_noticed(folders, tmp_path):
    base, tuned, patch = folders
    apply_patches(base, [patch], tmp_path / "out")
    name = sorted(naive_changes(base, tuned))[0]
    flip_bit(tmp_path / "out" / "dowser_patches" / "01.undo.safetensors", f"{name}.values")
    with pytest.raises(ValueError, match=rf"01.undo.safetensors is damaged \({name}.values has digest"):
        remove_patch(tmp_path / "out")


def test_folders_that_are_no_base(folders, tmp_path):
    base, _, patch = folders
    with pytest.raises(ValueError, match="tuned exists already"):
        apply_patches(base, [patch], tmp_path / "tuned")
    with pytest.raises(ValueError, match="out is inside .*base, which is copied"):
        apply_patches(base, [patch], base / "out")
    with pytest.raises(ValueError, match="has no patch to remove"):
        remove_patch(base)
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin, expected safetensors; convert it once"):
        apply_patches(base, [patch], tmp_path / "out")
    (base / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="neither model.safetensors nor model.safetensors.index.json"):
        apply_patches(base, [patch], tmp_path / "out")


def test_a_missing_or_damaged_shard_is_named(tmp_path):
    base, tuned = save_base(tmp_path / "base", shard="40KB"), save_tuned(tmp_path / "tuned", shard="40KB")
    patch = make_patch(tmp_path / "one.safetensors", base, tuned)
    shard = sorted(base.glob("*.safetensors"))[1]
    data = shard.read_bytes()
    for damaged in (data[:-4], data + b"0000", data[:4]):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{shard.name} is no whole safetensors file"):
            apply_patches(base, [patch], tmp_path / "out")
    shard.unlink()
    with pytest.raises(ValueError, match=f"lacks {shard.name}, which model.safetensors.index.json names"):
        apply_patches(base, [patch], tmp_path / "out")


def test_another_dtype_needs_a_cast(tmp_path):
    base = save_base(tmp_path / "base", torch.float16, "40KB")
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base_bf16")
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.up_proj.weight[:, 3] += 1
    model.save_pretrained(tmp_path / "tuned")
    patch = make_patch(tmp_path / "one.safetensors", tmp_path / "base_bf16", tmp_path / "tuned")
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["torch_dtype"] = "float16"  # as older transformers wrote it
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is float16 in .*base and bfloat16 in .*one.safetensors; add --cast"):
        apply_patches(base, [patch], tmp_path / "out")
    (applied,) = apply_patches(base, [patch], tmp_path / "out", cast_to_patch=True)
    assert applied.cast == "bfloat16"
    assert same_bits(load_folder(tmp_path / "out"), load_folder(tmp_path / "tuned"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "float16" not in json.dumps(config).replace("bfloat16", "")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    total = sum(tensor.nbytes for tensor in load_folder(tmp_path / "out").values())
    assert index["metadata"]["total_size"] == total
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert same_bits(dict(loaded.state_dict()), dict(model.state_dict()))
    remove_patch(tmp_path / "out")
    assert same_bits(load_folder(tmp_path / "out"), load_folder(tmp_path / "base_bf16"))


def test_a_cast_to_the_same_dtype_is_none_and_a_patched_folder_is_not_cast(folders, tmp_path):
    base, _, patch = folders
    (applied,) = apply_patches(base, [patch], tmp_path / "out", cast_to_patch=True)
    assert applied.cast is None
    half, tuned = save_base(tmp_path / "half", torch.bfloat16), save_tuned(tmp_path / "half_tuned", torch.bfloat16)
    other = make_patch(tmp_path / "other.safetensors", half, tuned)
    with pytest.raises(ValueError, match="has patches, which --cast would make irremovable"):
        apply_patches(tmp_path / "out", [other], tmp_path / "out2", cast_to_patch=True)
    with pytest.raises(ValueError, match="--cast needs patches of one floating dtype, got bfloat16, float32"):
        apply_patches(base, [patch, other], tmp_path / "out2", cast_to_patch=True)


def test_a_cast_keeps_integers_metadata_and_alignment(tmp_path):
    tensors = {"a.d": torch.rand(3, dtype=torch.float64), "b.i": torch.tensor([2**40]), "c.h": torch.rand(3).half()}
    tensors |= {"d.u": torch.tensor([5], dtype=torch.uint8), "e.e": torch.empty(0, 4)}
    source, destination = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(tensors, source, {"format": "pt", "note": "\u00e9"})
    rewrite(source, destination, torch.bfloat16)
    expected = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    assert same_bits(load_file(destination), expected)
    assert all(slot.start % slot.dtype.itemsize == 0 for slot in read_slots(destination).values())
    with safe_open(destination, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "note": "\u00e9"}


def runtime_style(folder: Path, out: Path, model: torch.nn.Module) -> Path:
    """The same model, its file under the names of the loaded model."""
    shutil.copytree(folder, out)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, out / "model.safetensors")
    return out


def test_a_folder_with_runtime_names_is_found_by_those_of_the_patch(folders, tmp_path):
    base, tuned, plain = folders
    by_bytes = {raw(tensor).tobytes(): name for name, tensor in tiny_llava().state_dict().items()}
    names = {name: by_bytes[raw(tensor).tobytes()] for name, tensor in load_folder(base).items()}
    changed = next(name for name in naive_changes(base, tuned) if names[name] != name)
    patch = make_patch(tmp_path / "named.safetensors", base, tuned, names)
    other = runtime_style(base, tmp_path / "other", tiny_llava())
    apply_patches(other, [patch], tmp_path / "out")
    assert same_bits(load_folder(tmp_path / "out"), dict(tuned_llava().state_dict()))
    remove_patch(tmp_path / "out")
    assert fingerprints(tmp_path / "out") == fingerprints(other)
    with pytest.raises(ValueError, match=f"changes {changed}, which .* does not have; the nearest there are .*weight"):
        apply_patches(other, [plain], tmp_path / "out2")


@pytest.mark.parametrize("part", ["values", "mask"])
def test_a_damaged_patch_is_refused_before_anything_is_written(folders, tmp_path, monkeypatch, part):
    base, _, patch = folders
    name = next(name for name in sorted(read_slots(patch)) if name.endswith(".mask")).removesuffix(".mask")
    flip_bit(patch, f"{name}.{part}")
    monkeypatch.setattr(apply, "copy_model", lambda *_: pytest.fail("something was written"))
    with pytest.raises(ValueError, match=rf"one.safetensors is damaged \({name}.*; copy or make it again"):
        apply_patches(base, [patch], tmp_path / "out")
    with pytest.raises(ValueError, match=rf"one.safetensors is damaged \({name}"):
        apply_to_model(AutoModelForImageTextToText.from_pretrained(base, dtype="auto"), Patch.open(patch))


def test_what_stood_in_a_base_comes_back_even_if_it_is_not_finite(tmp_path):
    base, tuned = save_base(tmp_path / "base"), save_tuned(tmp_path / "tuned")
    slot = next(slot for name, slot in read_slots(base / "model.safetensors").items() if "down_proj" in name)
    write(slot, torch.full(slot.shape, float("nan")))
    before = fingerprints(base)
    patch = make_patch(tmp_path / "one.safetensors", base, tuned)
    apply_patches(base, [patch], tmp_path / "out")
    remove_patch(tmp_path / "out")
    assert fingerprints(tmp_path / "out") == before


def test_weights_in_other_formats_are_not_copied_and_a_folder_loses_nothing_by_a_removal(folders, tmp_path):
    """They are of the base: who reads them would run another model than the patched one."""
    base, _, patch = folders
    before, out = fingerprints(base), tmp_path / "out"
    stale = ["pytorch_model.bin", "consolidated.00.pth", "model.fp16.safetensors", "onnx/model.onnx", ".git/config"]
    for name in stale:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(name)
    (base / "code.py").write_text("pass")
    apply_patches(base, [patch], out)
    assert set(fingerprints(out)) == {*before, "code.py", "dowser_patches/applied.json", UNDO}
    for name in stale:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    remove_patch(out)
    assert set(fingerprints(out)) == {*before, "code.py", *stale}
    assert all((out / name).read_text() == "mine" for name in stale)


UNDO = "dowser_patches/01.undo.safetensors"
ENDS = {"eos_token_id": [2, 7], "pad_token_id": 0}


@pytest.mark.parametrize("there", [True, False])
def test_a_patch_brings_the_ends_of_answers_and_takes_them_off(folders, tmp_path, there):
    base, tuned, _ = folders
    settings = "generation_config.json"
    if not there:
        (base / settings).unlink()
    changes, names = naive_changes(base, tuned), ["q_proj", "down_proj"]
    for name in names:
        some = {key: change for key, change in changes.items() if name in key}
        head = {"base": {"model": "tiny", "generation": ENDS if name == "q_proj" else ENDS | {"eos_token_id": [2, 9]}}}
        save_patch(tmp_path / f"{name}.safetensors", some, head)
    before, out = fingerprints(base), tmp_path / "out"
    apply_patches(base, [tmp_path / f"{name}.safetensors" for name in names], out)
    written = json.loads((out / settings).read_text())
    assert written["eos_token_id"] == [2, 7, 9] and written["pad_token_id"] == 0
    assert set(written) == (set(json.loads((base / settings).read_text())) if there else set(ENDS))
    remove_patch(out, tmp_path / "one off")
    assert json.loads((tmp_path / "one off" / settings).read_text())["eos_token_id"] == [2, 7]
    remove_patch(tmp_path / "one off")
    assert fingerprints(tmp_path / "one off") == before
    (out / settings).write_text("{}")
    with pytest.raises(ValueError, match=f"{settings} in .*out was changed after the patch was applied. Nothing was"):
        remove_patch(out)


def test_a_patch_that_ends_answers_where_its_base_does_changes_no_settings(folders, tmp_path):
    base, tuned, _ = folders
    head = {"base": {"model": "tiny", "generation": {"eos_token_id": [2], "bos_token_id": 5}}}
    save_patch(tmp_path / "p.safetensors", naive_changes(base, tuned), head)
    (applied,) = apply_patches(base, [tmp_path / "p.safetensors"], tmp_path / "out")
    assert applied.ends is None
    assert (tmp_path / "out" / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()
