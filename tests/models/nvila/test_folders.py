"""NVILA's folders in all layouts: read the same, and what they lack or hold instead is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dowser_pl.models.loading import files_of, load_model, load_processor, skeleton
from dowser_pl.models.names import as_saved, saved_names
from dowser_pl.models.nvila import NVILAForConditionalGeneration
from tests.tiny_nvila import TEXT, VISION, save_nvila
from tests.tiny_nvila_processor import IMAGE, LAYOUTS, VIDEO, Layout


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_tensor_by_tensor(layout: Layout, shards: int, tmp_path: Path) -> None:
    written = save_nvila(tmp_path, layout, shards=shards)
    model = load_model(str(tmp_path))
    assert type(model) is NVILAForConditionalGeneration and model.dtype == torch.bfloat16 and not model.training
    names, state = saved_names(model), model.state_dict()
    assert same({saved: state[name] for name, saved in names.items()}, written)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.config.name_or_path == str(tmp_path)
    assert (model.config.image_token_id, model.config.video_token_id) == (IMAGE, VIDEO)
    assert model.config.text_config.rope_parameters["rope_theta"] == TEXT["rope_theta"]
    assert model.generation_config.eos_token_id == TEXT["eos_token_id"]
    assert len(files_of(str(tmp_path)).stamps) == (shards if layout == "hf" else shards + 2)
    without = skeleton(str(tmp_path))
    assert saved_names(without) == names and without.dtype == torch.bfloat16
    load_processor(str(tmp_path))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_head_of_its_own_and_the_fold_of_two(layout: Layout, tmp_path: Path) -> None:
    written = save_nvila(tmp_path, layout, downsample=2, tied=False)
    model = load_model(str(tmp_path))
    assert model.config.downsample == 2
    assert same(as_saved(model, model.state_dict()), written)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tied_head_that_is_in_the_files_as_well(layout: Layout, tmp_path: Path) -> None:
    written = save_nvila(tmp_path, layout)
    file = tmp_path / ("model.safetensors" if layout == "hf" else "llm/model.safetensors")
    weights, prefix = load_file(file), "llm." if layout == "hf" else ""
    weights[f"{prefix}lm_head.weight"] = weights[f"{prefix}model.embed_tokens.weight"].clone()
    save_file(weights, file, metadata={"format": "pt"})
    model = load_model(str(tmp_path))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    written["llm.lm_head.weight"] = written["llm.model.embed_tokens.weight"]
    assert same(as_saved(model, model.state_dict()), written)


def test_code_that_comes_with_it_is_never_run(tmp_path: Path) -> None:
    save_nvila(tmp_path, "remote")
    assert type(load_model(str(tmp_path), trust_remote_code=True)) is NVILAForConditionalGeneration


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_dtypes_no_memory_and_four_bits(layout: Layout, tmp_path: Path) -> None:
    save_nvila(tmp_path, layout)
    assert load_model(str(tmp_path), dtype="float32").dtype == torch.float32
    assert {each.device.type for each in load_model(str(tmp_path), empty=True).parameters()} == {"meta"}
    packed = load_model(str(tmp_path), quantization="4bit")
    assert type(packed.model.language_model.layers[0].mlp.up_proj).__name__ == "Linear4bit"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_by_transformers_and_read_again(layout: Layout, tmp_path: Path) -> None:
    written = save_nvila(tmp_path / "base", layout)
    load_model(str(tmp_path / "base")).save_pretrained(tmp_path / "saved")
    assert same(load_file(tmp_path / "saved" / "model.safetensors"), written)
    again = load_model(str(tmp_path / "saved"))
    assert same(again.state_dict(), load_model(str(tmp_path / "base")).state_dict())


def test_the_configs_of_the_parts_count(tmp_path: Path) -> None:
    """VILA reads those; the copies in the root may be of another time."""
    save_nvila(tmp_path)
    change(
        tmp_path / "config.json", llm_cfg=TEXT | {"rope_theta": 5.0}, mm_projector_cfg={"mm_projector_type": "linear"}
    )
    assert load_model(str(tmp_path)).config.text_config.rope_parameters["rope_theta"] == TEXT["rope_theta"]
    for part in ("llm", "mm_projector"):
        (tmp_path / part / "config.json").unlink()
    with pytest.raises(ValueError, match="got mm_projector_type 'linear' in config.json of .*mlp_downsample_3x3_fix"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dynamic_s2": True}, "got dynamic_s2 True in config.json of .*Fix: take an NVILA-Lite model"),
        ({"s2": True}, "got s2 True"),
        ({"ps3": True}, "got ps3 True"),
        ({"image_aspect_ratio": "dynamic_s2"}, "got image_aspect_ratio 'dynamic_s2' in config.json"),
        ({"mm_vision_select_feature": "patch"}, "got mm_vision_select_feature 'patch' .* expected cls_patch"),
        ({"llm_cfg": TEXT | {"model_type": "llama"}}, "got model_type 'llama' of llm in .* expected qwen2"),
        (
            {"vision_tower_cfg": VISION | {"model_type": "clip_vision_model"}},
            "got model_type 'clip_vision_model' of vision_tower in .* expected siglip_vision_model",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("load", [load_model, load_processor])
def test_what_is_not_built_is_refused_by_name(load: object, config: dict, message: str, tmp_path: Path) -> None:
    save_nvila(tmp_path, "original", **config)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path))


def test_a_projector_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_nvila(tmp_path)
    change(tmp_path / "mm_projector" / "config.json", mm_projector_type="mlp_downsample_3x3_s2")
    with pytest.raises(ValueError, match="got mm_projector_type 'mlp_downsample_3x3_s2' .* expected one of"):
        load_model(str(tmp_path))


def test_nvidias_folder_that_is_not_lite(tmp_path: Path) -> None:
    save_nvila(tmp_path, "hf", model_type="nvila")
    with pytest.raises(ValueError, match=r"type 'nvila' in .*several scales of a picture \(dynamic_s2\)"):
        load_model(str(tmp_path))


def test_weights_of_another_projector(tmp_path: Path) -> None:
    save_nvila(tmp_path, "hf", downsample=2, model_type="nvila_lite")
    change(tmp_path / "config.json", downsample=3)
    with pytest.raises(ValueError, match="expected every weight exactly once. Got .* missing from the files"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("part", ["llm", "vision_tower", "mm_projector"])
def test_files_of_a_part(part: str, tmp_path: Path) -> None:
    save_nvila(tmp_path, shards=2)
    file = sorted((tmp_path / part).glob("*.safetensors"))[0]
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(ValueError, match=rf"{part}.*({file.name}|no file named model.safetensors)"):
        load_model(str(tmp_path))
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13\n")
    with pytest.raises(ValueError, match=rf"pointers of git-lfs in the place of 1 files .*\({file.name}\)"):
        load_model(str(tmp_path))
    file.write_bytes(content[:-7])
    with pytest.raises(ValueError, match="the weights of .* are damaged"):
        load_model(str(tmp_path))
    file.write_bytes(content)
    load_model(str(tmp_path))


def test_a_tensor_too_many_or_too_few(tmp_path: Path) -> None:
    save_nvila(tmp_path)
    file = tmp_path / "mm_projector" / "model.safetensors"
    weights = load_file(file)
    weights["layers.9.bias"] = weights.pop("layers.7.bias")
    save_file(weights, file, metadata={"format": "pt"})
    message = (
        "1 missing from the files: model.multi_modal_projector.layers.7.bias; 1 unknown to the model: .*layers.9.bias"
    )
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path))


def test_settings_of_a_part_that_cannot_be_read(tmp_path: Path) -> None:
    save_nvila(tmp_path)
    (tmp_path / "llm" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json of .*llm is damaged"):
        load_model(str(tmp_path))


def test_the_numbers_of_the_tokens_without_a_tokenizer(tmp_path: Path) -> None:
    save_nvila(tmp_path)
    (tmp_path / "llm" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="without the tokens that its tokenizer sets apart"):
        load_model(str(tmp_path))
    (tmp_path / "llm" / "added_tokens.json").write_text(json.dumps({"<|endoftext|>": 258, "[PAD]": 262}))
    assert load_model(str(tmp_path)).config.image_token_id == 264


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_the_cache_of_the_hub(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = tmp_path / "models--owner--nvila"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("0" * 40)
    written = save_nvila(entry / "snapshots" / ("0" * 40), layout, shards=2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = NVILAForConditionalGeneration.from_pretrained("owner/nvila", cache_dir=tmp_path, local_files_only=True)
    assert same({saved: model.state_dict()[name] for name, saved in saved_names(model).items()}, written)
    monkeypatch.setattr("dowser_pl.models.sources.try_to_load_from_cache", _found_in(entry / "snapshots" / ("0" * 40)))
    again = load_model("owner/nvila")
    assert same(dict(again.state_dict()), dict(model.state_dict()))
    assert all("snapshots" in str(file) for file in files_of("owner/nvila").stamps)


def _found_in(folder: Path) -> Callable[..., str]:
    return lambda _, name: str(folder / name)
