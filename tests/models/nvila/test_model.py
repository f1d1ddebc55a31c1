"""NVILA against its parts by themselves: SigLIP and Qwen2 of transformers, and plain arithmetic."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from dowser_pl.models.layers import find_layers
from dowser_pl.models.loading import load_model, skeleton
from dowser_pl.models.names import saved_names
from dowser_pl.models.nvila import NVILAConfig, NVILAForConditionalGeneration
from dowser_pl.models.nvila.projector import NVILAProjector
from dowser_pl.models.parts import named_part
from tests.tiny_nvila import (
    REAL_TEXT,
    REAL_VISION,
    ROWS,
    native_configs,
    projector_shapes,
    random_weights,
    save_nvila,
    shapes_of,
)
from tests.tiny_nvila_processor import IMAGE, NEWLINE, SIDE, spelled


def erf_gelu(values: Tensor) -> Tensor:
    return values * 0.5 * (1 + torch.erf(values / 2**0.5))


def normed(values: Tensor, weights: dict[str, Tensor], layer: int) -> Tensor:
    centred = values - values.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"layers.{layer}.weight"] + weights[f"layers.{layer}.bias"]


def linear(values: Tensor, weights: dict[str, Tensor], layer: int) -> Tensor:
    return values @ weights[f"layers.{layer}.weight"].T + weights[f"layers.{layer}.bias"]


def projected(patches: Tensor, weights: dict[str, Tensor], f: int) -> Tensor:
    """One tile of (G, G, C) in float64, a block at a time."""
    side, _, width = patches.shape
    blocks = []
    for top in range(0, side, f):
        for left in range(0, side, f):
            block = torch.zeros(f, f, width, dtype=torch.float64)
            there = patches[top : top + f, left : left + f]
            block[: there.shape[0], : there.shape[1]] = there
            blocks.append(block.flatten())
    values = normed(torch.stack(blocks), weights, 1)
    values = erf_gelu(linear(values, weights, 2))
    if f == 2:
        return linear(values, weights, 4)
    values = erf_gelu(linear(normed(values, weights, 4), weights, 5))
    return linear(values, weights, 7)


@pytest.mark.parametrize(
    ("side", "f", "tokens"), [(32, 3, 121), (6, 3, 4), (5, 3, 4), (7, 3, 9), (32, 2, 256), (5, 2, 9)]
)
def test_the_projector_is_what_arithmetic_says(side: int, f: int, tokens: int) -> None:
    weights = random_weights(projector_shapes(8, 12, f), seed=f, dtype=torch.float64)
    config = NVILAConfig(text_config={"hidden_size": 12}, vision_config={"hidden_size": 8}, downsample=f)
    projector = NVILAProjector(config).double()
    projector.load_state_dict(weights)
    patches = torch.randn(2, side, side, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = projector(patches.flatten(1, 2))
    assert got.shape == (2, tokens, 12)
    expected = torch.stack([projected(tile, weights, f) for tile in patches])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_another_fold_is_refused() -> None:
    with pytest.raises(ValueError, match="got downsample=4 of an NVILA, expected 2 or 3"):
        NVILAConfig(downsample=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvila") / "original"
    save_nvila(folder, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> NVILAForConditionalGeneration:
    return load_model(str(folder))


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    """Two rows of one tile each, the second one padded on the left."""
    tile = [IMAGE] * 4 + [NEWLINE]
    rows = [spelled("look: ") + tile + spelled("well?"), tile + spelled("so?")]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def by_hand(folder: Path, inputs: dict[str, Tensor], **options: Any) -> tuple[Qwen2ForCausalLM, Tensor]:
    """Qwen2 of `llm/`, and what it is given: words, and in the places of images what tower and projector make."""
    llm = Qwen2ForCausalLM.from_pretrained(folder / "llm", **options)
    tower = SiglipVisionModel.from_pretrained(folder / "vision_tower", **options)
    seen = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
    weights = {name: each.double() for name, each in load_file(folder / "mm_projector" / "model.safetensors").items()}
    features = torch.cat([projected(tile.unflatten(0, (5, 5)).double(), weights, 3) for tile in seen])
    is_image = inputs["input_ids"] == IMAGE
    words = llm.get_input_embeddings()(inputs["input_ids"].clamp(max=ROWS - 1)).detach().clone()
    words[is_image] = features.float()
    return llm, words


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_is_its_parts(folder: Path, inputs: dict[str, Tensor], attention: str) -> None:
    model = load_model(str(folder), attn_implementation=attention)
    llm, words = by_hand(folder, inputs, attn_implementation=attention)
    expected = llm(inputs_embeds=words, attention_mask=inputs["attention_mask"]).logits
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    assert expected.shape[-1] == ROWS and model._supports_flash_attn
    parts = (model.model.vision_tower, model.model.language_model)
    assert {part.config._attn_implementation for part in parts} == {attention}


@torch.no_grad()
def test_features_of_images(model: NVILAForConditionalGeneration, folder: Path, inputs: dict[str, Tensor]) -> None:
    _, words = by_hand(folder, inputs)
    features = torch.stack(list(model.get_image_features(inputs["pixel_values"]).pooler_output))
    torch.testing.assert_close(features.flatten(0, 1), words[inputs["input_ids"] == IMAGE], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_text_alone_is_qwen2(model: NVILAForConditionalGeneration, folder: Path) -> None:
    llm = Qwen2ForCausalLM.from_pretrained(folder / "llm")
    ids = torch.tensor([spelled("what is it?")])
    assert torch.equal(model(input_ids=ids).logits, llm(input_ids=ids).logits)


@torch.no_grad()
def test_it_writes_with_a_cache_what_it_writes_without(
    model: NVILAForConditionalGeneration, inputs: dict[str, Tensor]
) -> None:
    settings = {"max_new_tokens": 6, "do_sample": False, "repetition_penalty": 1.0, "eos_token_id": None}
    written = model.generate(**inputs, **settings)
    assert torch.equal(written, model.generate(**inputs, **settings, use_cache=False))
    start = inputs["input_ids"].shape[1]
    assert torch.equal(written[:, :start], inputs["input_ids"]) and written[:, start:].max() < ROWS
    mask = torch.ones(2, 5, dtype=torch.int64)
    whole = {**inputs, "input_ids": written[:, :-1], "attention_mask": torch.cat([inputs["attention_mask"], mask], 1)}
    assert torch.equal(model(**whole).logits[:, start - 1 :].argmax(-1), written[:, start:])


@torch.no_grad()
def test_its_own_settings_of_generation_do_not_trip_over_images(
    model: NVILAForConditionalGeneration, inputs: dict[str, Tensor]
) -> None:
    """A penalty looks up what was said, and the number of the image token is beyond the vocabulary."""
    assert model.generation_config.repetition_penalty == 1.1
    written = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert written.shape[1] > inputs["input_ids"].shape[1]


def test_a_missing_picture_is_refused(model: NVILAForConditionalGeneration, inputs: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="image tokens do not match, tokens: 8"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:1]})


def gradients(folder: Path, inputs: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    model = load_model(str(folder), **options).train()
    for name, weight in model.named_parameters():
        weight.requires_grad_("language_model.layers" in name or "projector" in name)
    model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_gradient_checkpointing_changes_no_gradient(folder: Path, inputs: dict[str, Tensor]) -> None:
    plain, saved = gradients(folder, inputs), gradients(folder, inputs, gradient_checkpointing=True)
    assert plain.keys() == saved.keys() and len(plain) == 3 * 12 + 10
    assert all(torch.equal(plain[name], saved[name]) for name in plain)


def test_layers_and_parts_are_found_by_their_places(model: NVILAForConditionalGeneration) -> None:
    found = find_layers(model, 2, ["attn", "mlp"])
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    names += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert list(found) == [f"model.language_model.layers.{i}.{name}" for i in (1, 2) for name in names]
    assert {name.split(".")[1] for name in named_part(model, "projector")} == {"multi_modal_projector"}
    assert {name.split(".")[1] for name in named_part(model, "vision")} == {"vision_tower"}
    assert {"Qwen2DecoderLayer", "SiglipEncoderLayer"} <= set(model._no_split_modules)


def test_every_tensor_of_nvila_lite_2b_has_its_place(tmp_path: Path) -> None:
    """Names and shapes of the published files, 27 layers of SigLIP and 28 of Qwen2: each is one of the model's."""
    parts = shapes_of(REAL_TEXT, REAL_VISION)
    expected = {f"{part}.{name}": shape for part, shapes in parts.items() for name, shape in shapes.items()}
    assert [len(shapes) for shapes in parts.values()] == [28 * 12 + 2, 27 * 16 + 5, 10]
    megabytes = {
        part: sum(2 * torch.Size(each).numel() for each in shapes.values()) // 10**6 for part, shapes in parts.items()
    }
    assert (megabytes["vision_tower"], megabytes["mm_projector"]) == (826, 87)
    save_nvila(tmp_path / "m", llm_cfg=REAL_TEXT, vision_tower_cfg=REAL_VISION)
    model = skeleton(str(tmp_path / "m"))
    names, state = saved_names(model), model.state_dict()
    assert {saved: tuple(state[name].shape) for name, saved in names.items()} == expected
    assert set(state) - set(names) == {"lm_head.weight"}  # tied
    assert model.config.image_token_id == IMAGE and model.config.text_config.rope_parameters["rope_theta"] == 1e6


def test_it_is_known_to_the_auto_classes(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(NVILAConfig(**native_configs(REAL_TEXT, REAL_VISION)))
    assert type(model) is NVILAForConditionalGeneration
    save_nvila(tmp_path, "hf")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is NVILAForConditionalGeneration and type(loaded.config) is NVILAConfig
    assert isinstance(loaded.config.vision_config, SiglipVisionConfig)
