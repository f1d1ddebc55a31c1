"""Folders that are something else than a model of transformers: named, with the way out, before a weight is read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dowser_pl.models.loading import load_model, load_processor
from dowser_pl.models.sources import find_source

ORIGINAL = {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": "clip"}
VILA = {"model_type": "llava_llama", "architectures": ["LlavaLlamaModel"], "llm_cfg": {}, "vision_tower_cfg": {}}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], r"an adapter \(LoRA\) only.*merge the adapter"),
        (["non_lora_trainables.bin"], r"an adapter \(LoRA\) only"),
        (["mm_projector.bin"], r"the projector of .*original LLaVA code.*-hf"),
        (["llm", "vision_tower", "mm_projector"], r"parts of a model in the layout of VILA or NVILA.*the whole model"),
        (["params.json", "consolidated.safetensors", "tekken.json"], r"the layout of Mistral or Meta.*convert it"),
        (["consolidated.00.pth"], r"the layout of Mistral or Meta"),
        (["model-Q4_K_M.gguf", "mmproj.gguf"], r"weights in GGUF.*the model that they were made from"),
        (["model_index.json", "unet"], r"a pipeline of diffusers"),
        (["patch.safetensors"], r"a patch, .*dowser_pl patch apply"),
        (["config.yaml", "checkpoints", "logs"], r"the folder of a run.*/model\."),
        (["report.json", "patch.safetensors", "model"], r"the folder of a run.*/model\."),
        (["last.ckpt"], r"checkpoints of training.*--ckpt_path"),
        (["meta.pt", ".metadata", "__0_0.distcp"], r"checkpoints of training"),
        (["global_step100", "latest"], r"checkpoints of training"),
        (["blobs", "refs", "snapshots"], r"an entry of the cache of the hub.*snapshots"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
@pytest.mark.parametrize("load", [load_model, load_processor])
def test_what_is_no_model_is_named(load: object, names: list[str], message: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"got {tmp_path}, which holds .*{message}"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ORIGINAL, r"in the layout of the original LLaVA code.*-hf"),
        (ORIGINAL | {"model_type": "llava_llama"}, r"in the layout of the original LLaVA code"),
        ({"architectures": ["LlavaQwenForCausalLM"], "model_type": "qwen2"}, r"the original LLaVA code"),
        (VILA, r"without mm_projector/config.json .* all three folders of VILA.*the whole model"),
        ({"architectures": ["VILAForCausalLM"], "model_type": "vila"}, r"type 'vila' in .*without llm_cfg"),
    ],
    ids=["early", "llava_llama", "qwen", "nvila", "vila"],
)
@pytest.mark.parametrize("load", [load_model, load_processor])
def test_configs_of_other_code(load: object, config: dict, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load(str(folder))


def test_an_adapter_beside_a_config_is_still_an_adapter(folder: Path) -> None:
    """transformers would load another model and put the adapter on it."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(ValueError, match=r"an adapter \(LoRA\) only"):
        load_model(str(folder))


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    for name, what in {"model.safetensors": "no model by itself", "a.gguf": "GGUF", "last.ckpt": "--ckpt_path"}.items():
        (folder / name).touch()
        with pytest.raises(ValueError, match=rf"got the file .*{name}.*{what}"):
            find_source(str(folder / name))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_pointers_of_git_lfs(name: str, folder: Path) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13\n")
    for load in (load_model, load_processor):
        with pytest.raises(ValueError, match=rf"got pointers of git-lfs .* 1 files .*\({name}\).*git lfs pull"):
            load(str(folder))


def shard(folder: Path) -> dict[str, str]:
    """Write the weights as two files and an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {f"model-0000{i + 1}-of-00002.safetensors": sorted(weights)[i::2] for i in range(2)}
    for name, keys in parts.items():
        save_file({key: weights[key] for key in keys}, folder / name, metadata={"format": "pt"})
    index = {key: name for name, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return index


def test_a_shard_is_missing(folder: Path) -> None:
    shard(folder)
    load_model(str(folder))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 files of weights .* missing: model-00002-of-00002.safetensors"):
        load_model(str(folder))


def test_a_damaged_index(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model.safetensors.index.json is damaged"):
        load_model(str(folder))


def test_only_weights_of_another_format(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")
    with pytest.raises(ValueError, match=r"has no file named model.safetensors .*got weights in GGUF"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"],
)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1', "is damaged"),
        ("", "is damaged"),
        ("[]", "holds a list, expected a JSON object"),
        ("[" * 100_000 + "]" * 100_000, "is damaged .maximum recursion"),
    ],
    ids=["cut", "empty", "list", "deep"],
)
def test_settings_that_cannot_be_read(name: str, text: str, message: str, folder: Path) -> None:
    (folder / name).write_text(text)
    for load in (load_model, load_processor):
        with pytest.raises(ValueError, match=rf"{name} of .* {message}"):
            load(str(folder))


def test_weights_of_torch(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    load_model(str(folder))
    (folder / "pytorch_model.bin").write_text("<html>")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is damaged \(it starts with b'<h'"):
        load_model(str(folder))


def test_two_sets_of_weights(folder: Path) -> None:
    old = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(old)
    with pytest.raises(ValueError, match=r"holds two sets of weights, model.safetensors and the 2 files that .* names"):
        load_model(str(folder))
    index = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    load_model(str(folder))
