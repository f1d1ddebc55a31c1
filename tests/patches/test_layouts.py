"""Folders of parts, as VILA has NVILA: patched, converted, and written as one folder and back; nothing else moves."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dowser_pl.commands.patch import main
from dowser_pl.models.loading import load_model, load_processor
from dowser_pl.models.nvila.published import own_settings
from dowser_pl.patches.apply import apply_patches, remove_patch
from dowser_pl.patches.diff import difference
from dowser_pl.patches.loaded import apply_to_model
from dowser_pl.patches.patch import Patch, save_patch, tensor_digest
from dowser_pl.patches.tuned_folder import rearrange
from tests.patches.samples import HEAD, fingerprints, same_bits, save_base
from tests.tiny_nvila import KINDS, save_nvila
from tests.tiny_nvila_processor import IMAGE, LAYOUTS, Layout

PARTS = ("llm", "vision_tower", "mm_projector")
MOVED = (
    "llm.model.layers.1.mlp.down_proj.weight",
    "llm.model.layers.2.self_attn.q_proj.weight",
    "llm.model.norm.weight",
)


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder by the names of the single one, read by the safetensors library."""
    found: dict[str, Tensor] = {}
    for place in PARTS if (folder / "llm").is_dir() else ("",):
        for file in sorted((folder / place).glob("*.safetensors")):
            found |= {f"{place}.{name}".removeprefix("."): each for name, each in load_file(file).items()}
    return found


def move(folder: Path) -> dict[str, Tensor]:
    """Change some entries of the files that hold `MOVED`, in place; returns what the folder holds now."""
    for file in folder.rglob("*.safetensors"):
        place = "" if file.parent == folder else f"{file.parent.name}."
        weights = load_file(file)
        for name in [name for name in weights if place + name in MOVED]:
            weights[name].flatten()[::3] += 1
        save_file(weights, file, metadata={"format": "pt"})
    return tensors(folder)


@pytest.fixture
def patch(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A patch of the original layout, and what it makes of the model."""
    for name in ("base", "tuned"):
        save_nvila(tmp_path / "made" / name)
    after = move(tmp_path / "made" / "tuned")
    found = difference(tmp_path / "made" / "base", tmp_path / "made" / "tuned")
    assert set(found.changes) == set(MOVED)
    save_patch(tmp_path / "p.safetensors", found.changes, HEAD)
    return tmp_path / "p.safetensors", after


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_patch_fits_every_layout_and_comes_off_again(
    layout: Layout, shards: int, patch: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    path, after = patch
    save_nvila(tmp_path / "base", layout, shards=shards)
    apply_patches(tmp_path / "base", [path], tmp_path / "out")
    assert same_bits(tensors(tmp_path / "out"), after)
    before, now = fingerprints(tmp_path / "base"), fingerprints(tmp_path / "out")
    changed = {name for name in before if before[name] != now[name]}
    assert changed and all(name.endswith(".safetensors") and "vision" not in name for name in changed)
    load_model(str(tmp_path / "out"))
    remove_patch(tmp_path / "out")
    assert fingerprints(tmp_path / "out") == before


def test_it_fits_the_loaded_model(patch: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path, _ = patch
    model, before = (load_model(str(tmp_path / "made" / "base")) for _ in range(2))
    with Patch.open(path) as opened:
        undo = apply_to_model(model, opened)
    tuned = load_model(str(tmp_path / "made" / "tuned")).state_dict()
    assert same_bits(dict(model.state_dict()), dict(tuned))
    undo.remove()
    assert same_bits(dict(model.state_dict()), dict(before.state_dict()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_widened_folder_says_so_everywhere_and_comes_back_byte_for_byte(layout: Layout, tmp_path: Path) -> None:
    save_nvila(tmp_path / "base", layout, shards=2)
    for name in ("wide", "tuned"):
        save_nvila(tmp_path / name, layout, shards=2, dtype=torch.float32)
    for file in (tmp_path / "wide").rglob("*.safetensors"):  # the numbers that bfloat16 holds
        save_file({n: t.bfloat16().float() for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
        save_file(load_file(file), tmp_path / "tuned" / file.relative_to(tmp_path / "wide"), metadata={"format": "pt"})
    after = move(tmp_path / "tuned")
    save_patch(tmp_path / "p.safetensors", difference(tmp_path / "wide", tmp_path / "tuned").changes, HEAD)
    (done,) = apply_patches(tmp_path / "base", [tmp_path / "p.safetensors"], tmp_path / "out")
    assert done.cast == "float32" and same_bits(tensors(tmp_path / "out"), after)
    for file in ("config.json", *(f"{part}/config.json" for part in PARTS)):
        text = (tmp_path / "out" / file).read_text() if (tmp_path / "out" / file).is_file() else ""
        assert not re.search("bfloat16", text)
    assert load_model(str(tmp_path / "out")).dtype == torch.float32
    if layout != "hf":
        assert json.loads((tmp_path / "out" / "config.json").read_text())["model_dtype"] == "torch.float32"
        index = json.loads((tmp_path / "out" / "llm" / "model.safetensors.index.json").read_text())
        sizes = [each.nbytes for name, each in after.items() if name.startswith("llm.")]
        assert index["metadata"]["total_size"] == sum(sizes)
    remove_patch(tmp_path / "out")
    assert fingerprints(tmp_path / "out") == fingerprints(tmp_path / "base")


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "other"), [("original", "hf"), ("remote", "hf"), ("hf", "original")])
@pytest.mark.parametrize(("shards", "downsample", "tied"), [(1, 3, True), (3, 2, False)])
def test_there_and_back_every_tensor_has_its_bytes(
    layout: Layout, other: Layout, shards: int, downsample: int, tied: bool, tmp_path: Path
) -> None:
    written = save_nvila(tmp_path / "base", layout, shards=shards, downsample=downsample, tied=tied, max_tiles=5)
    (tmp_path / "base" / "LICENSE").write_text("do what you like")
    rearrange(tmp_path / "base", tmp_path / "there", other)
    back = "original" if other == "hf" else "hf"
    rearrange(tmp_path / "there", tmp_path / "back", back)
    models = [load_model(str(tmp_path / name)) for name in ("base", "there", "back")]
    for name, model in zip(("base", "there", "back"), models, strict=True):
        folder = tmp_path / name
        assert same_bits(tensors(folder), written)
        assert same_bits(dict(model.state_dict()), dict(models[0].state_dict()))
        apart = {"_name_or_path": 0, "architectures": 0, "chat_template": 0}
        assert model.config.to_dict() | apart == models[0].config.to_dict() | apart
        assert model.dtype == torch.bfloat16 and model.generation_config == models[0].generation_config
        processor = load_processor(str(folder))
        assert processor.image_token_id == IMAGE and processor.image_processor.max_patches == 5
        assert (folder / "LICENSE").read_text() == "do what you like"
    assert not list((tmp_path / "there").rglob("*.py"))
    kind = json.loads((tmp_path / "there" / "config.json").read_text())["model_type"]
    assert kind == ("llava_llama" if other == "original" else "nvila_lite" if downsample == 3 else "nvila")
    settings = [_parts(tmp_path / name) for name in ("base", "there", "back")]
    assert settings[0] == settings[1] == settings[2]


def _parts(folder: Path) -> list[object]:
    found = own_settings(folder, json.loads((folder / "config.json").read_text()), {})
    return [found["text_config"], found["vision_config"]]


def test_what_vila_reads_of_the_three_folders(tmp_path: Path) -> None:
    """Keys that its builders look up (`llava/model/builder.py`, `llava_arch.py` and those of its parts)."""
    save_nvila(tmp_path / "base", "hf")
    rearrange(tmp_path / "base", tmp_path / "out", "original")
    root = json.loads((tmp_path / "out" / "config.json").read_text())
    assert root["architectures"] == ["LlavaLlamaModel"] and root["model_dtype"] == "torch.bfloat16"
    assert (root["hidden_size"], root["mm_hidden_size"]) == (32, 16)
    for part, key in zip(PARTS, ("llm_cfg", "vision_tower_cfg", "mm_projector_cfg"), strict=True):
        own = json.loads((tmp_path / "out" / part / "config.json").read_text())
        assert own == root[key]
    assert root["mm_projector_cfg"]["mm_projector_type"] == KINDS[3]
    assert root["llm_cfg"]["architectures"] == ["Qwen2ForCausalLM"]
    assert root["vision_tower_cfg"]["architectures"] == ["SiglipVisionModel"]
    there = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.json")}
    assert {"llm/tokenizer.json", "llm/generation_config.json", "vision_tower/preprocessor_config.json"} <= there


@pytest.mark.parametrize(("layout", "other"), [("original", "hf"), ("hf", "original")])
def test_a_patch_into_another_layout_and_off_again(
    layout: Layout, other: Layout, patch: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    path, after = patch
    before = save_nvila(tmp_path / "base", layout)
    assert main(["apply", str(tmp_path / "base"), str(path), "--out", str(tmp_path / "out"), "--layout", other]) == 0
    assert (tmp_path / "out" / "llm").is_dir() == (other == "original")
    assert same_bits(tensors(tmp_path / "out"), after)
    load_model(str(tmp_path / "out"))
    remove_patch(tmp_path / "out")
    assert same_bits(tensors(tmp_path / "out"), before)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = save_nvila(tmp_path / "base")
    arguments = ["export", str(tmp_path / "base"), "--layout", "hf", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert f"{tmp_path / 'out'} in the layout hf, every tensor byte for byte" in capsys.readouterr().out
    assert same_bits(tensors(tmp_path / "out"), written)
    assert main(arguments) == 1
    assert "exists already and is not overwritten" in capsys.readouterr().err


def test_what_cannot_be_rearranged(patch: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    save_base(tmp_path / "llava")
    with pytest.raises(ValueError, match="got the layout 'hf' for a model of type 'llava' in .*expected an NVILA"):
        rearrange(tmp_path / "llava", tmp_path / "out", "hf")
    base = tmp_path / "made" / "base"
    with pytest.raises(ValueError, match="has the layout 'original' already"):
        rearrange(base, tmp_path / "out", "original")
    apply_patches(base, [patch[0]], tmp_path / "patched")
    with pytest.raises(ValueError, match="has patches, which could not be taken off"):
        rearrange(tmp_path / "patched", tmp_path / "out", "hf")
    with pytest.raises(ValueError, match="has patches, which could not be undone in another layout"):
        save_patch(tmp_path / "q.safetensors", difference(tmp_path / "patched", base).changes, HEAD)
        apply_patches(tmp_path / "patched", [tmp_path / "q.safetensors"], tmp_path / "out", layout="hf")
    save_nvila(tmp_path / "hf", "hf")
    (tmp_path / "hf" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="without preprocessor_config.json, expected that of SigLIP"):
        rearrange(tmp_path / "hf", tmp_path / "out", "original")
    assert not (tmp_path / "out").exists()


def test_a_patch_of_another_dtype_is_not_rearranged_at_once(tmp_path: Path) -> None:
    save_nvila(tmp_path / "base")
    for name in ("wide", "tuned"):
        save_nvila(tmp_path / name, dtype=torch.float32)
    move(tmp_path / "tuned")
    changes = difference(tmp_path / "wide", tmp_path / "tuned").changes
    held = {name: load_file(tmp_path / "base" / "llm" / "model.safetensors")[name[4:]] for name in changes}
    changes = {name: replace(each, base_sha256=tensor_digest(held[name].float())) for name, each in changes.items()}
    save_patch(tmp_path / "p.safetensors", changes, HEAD)
    with pytest.raises(ValueError, match="must be converted to the dtype of the patch, which .* could not be undone"):
        apply_patches(tmp_path / "base", [tmp_path / "p.safetensors"], tmp_path / "out", layout="hf")


def test_pickled_parts_become_safetensors(tmp_path: Path) -> None:
    written = save_nvila(tmp_path / "base")
    for part in PARTS:
        torch.save(
            load_file(tmp_path / "base" / part / "model.safetensors"), tmp_path / "base" / part / "pytorch_model.bin"
        )
        (tmp_path / "base" / part / "model.safetensors").unlink()
    load_model(str(tmp_path / "base"))
    rearrange(tmp_path / "base", tmp_path / "out", "hf")
    assert same_bits(tensors(tmp_path / "out"), written)
