"""Processor and model of one folder: what is completed, what is refused before a weight is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    Blip2Processor,
    CLIPVisionConfig,
    InstructBlipProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MllamaConfig,
    PaliGemmaProcessor,
    PreTrainedConfig,
    SiglipVisionConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.idefics3 import modeling_idefics3
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from dowser_pl.models.agreement import _hollow, _num_rows, check_agreement
from dowser_pl.models.loading import load_model, load_processor
from tests import tiny_models
from tests.data import test_families as families
from tests.data.builders import build_llava, build_tokenizer, chat_template
from tests.tiny_models import IMAGE, VISION, make_processor, tiny_llava


def change(path: Path, **changes: object) -> None:
    """Set values of a JSON file; None takes them out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def loaded(folder: Path) -> tuple[Any, list[str]]:
    said: list[str] = []
    return load_processor(str(folder), say=said.append), said


def num_image_tokens(processor: Any) -> int:
    batch = processor(images=Image.new("RGB", (30, 20)), text="<image> what ?", return_tensors="pt")
    return int((batch["input_ids"] == IMAGE).sum())


def test_a_whole_folder_says_nothing(folder: Path) -> None:
    processor, said = loaded(folder)
    assert (said, num_image_tokens(processor)) == ([], 4)


def test_early_folders_without_processor_config(folder: Path) -> None:
    (folder / "processor_config.json").unlink()
    make_processor().image_processor.save_pretrained(folder)
    processor, said = loaded(folder)
    assert num_image_tokens(processor) == 4
    assert said == [
        f"The processor of {folder} does not say patch_size 8, vision_feature_select_strategy default, "
        "num_additional_image_tokens 1: taken from the config of the model"
    ]


def test_folders_from_before_additional_image_tokens(folder: Path) -> None:
    change(folder / "processor_config.json", num_additional_image_tokens=None)
    processor, said = loaded(folder)
    assert (num_image_tokens(processor), len(said)) == (4, 1)
    assert "does not say num_additional_image_tokens 1" in said[0]


def test_every_token_of_the_tower_is_taken(folder: Path) -> None:
    """Strategy "full": the class token is a feature too."""
    change(folder / "processor_config.json", num_additional_image_tokens=None, vision_feature_select_strategy=None)
    change(folder / "config.json", vision_feature_select_strategy="full")
    processor, said = loaded(folder)
    assert num_image_tokens(processor) == 5
    assert "vision_feature_select_strategy full, num_additional_image_tokens 1" in said[0]


def test_a_tower_without_a_class_token(folder: Path) -> None:
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=tiny_llava().config.text_config,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    tiny_models.build(LlavaForConditionalGeneration, config, 0).save_pretrained(folder)
    change(folder / "processor_config.json", num_additional_image_tokens=None, vision_feature_select_strategy=None)
    processor, said = loaded(folder)
    assert num_image_tokens(processor) == 4
    assert "num_additional_image_tokens 0" in said[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_additional_image_tokens": 0},
        {"patch_size": 4},
        {"vision_feature_select_strategy": "full"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_that_contradict_the_model(changes: dict[str, object], folder: Path) -> None:
    change(folder / "processor_config.json", **changes)
    (folder / "model.safetensors").unlink()  # it is said before weights are looked for
    message = rf"disagree about images: the processor writes \d+ image tokens .*'{next(iter(changes))}': .*Fix: take"
    with pytest.raises(ValueError, match=message):
        load_processor(str(folder))


def test_images_of_another_size(folder: Path) -> None:
    size = {"height": 32, "width": 32}
    content = json.loads((folder / "processor_config.json").read_text())
    content["image_processor"] |= {"size": size, "crop_size": size}
    (folder / "processor_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"disagree about images: .*32\*32"):
        load_processor(str(folder))


def test_another_image_token(folder: Path) -> None:
    change(folder / "config.json", image_token_index=9, image_token_id=9)
    with pytest.raises(
        ValueError, match=r"disagree about the image token: .*'<image>', id 4, .* expects id 9 \('assis"
    ):
        load_processor(str(folder))


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("count", [1, 40])
def test_a_tokenizer_that_is_larger_than_the_embedding(count: int, special: bool, folder: Path) -> None:
    processor = make_processor()
    processor.tokenizer.add_tokens([f"<loc_{i}>" for i in range(count)], special_tokens=special)
    processor.save_pretrained(folder)
    rows = tiny_llava().config.text_config.vocab_size
    first = len(tiny_models.VOCABULARY)
    over = first + count - rows
    if over <= 0:  # rows without a token are padding
        load_processor(str(folder))
        return
    with pytest.raises(
        ValueError, match=rf"{over} tokens without an embedding: '<loc_{rows - first}>' \({rows}\).*resize"
    ):
        load_processor(str(folder))


def test_a_larger_embedding_is_padding(tmp_path: Path) -> None:
    tiny_llava(vocab_size=128).save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    assert loaded(tmp_path)[1] == []
    load_model(str(tmp_path))


def instructblip(_: str) -> InstructBlipProcessor:
    images = BlipImageProcessorPil(size=families.SIZE)
    return InstructBlipProcessor(images, build_tokenizer(), build_tokenizer(), num_query_tokens=4)


def blip2(_: str) -> Blip2Processor:
    return Blip2Processor(BlipImageProcessorPil(size=families.SIZE), build_tokenizer(), num_query_tokens=4)


def paligemma(_: str) -> PaliGemmaProcessor:
    images = SiglipImageProcessorPil(size=families.SIZE)
    images.image_seq_length = 4
    return PaliGemmaProcessor(images, build_tokenizer())


def fewer(name: str) -> Callable[[Any], None]:
    return lambda processor: setattr(processor, name, getattr(processor, name) - 1)


def no_merge(processor: Any) -> None:
    processor.image_processor.merge_size = 1


FAMILIES = {
    "llava": (build_llava, fewer("num_additional_image_tokens")),
    "llava_next": (families.llava_next, fewer("num_additional_image_tokens")),
    "idefics3": (families.idefics3, fewer("image_seq_len")),
    "qwen2_5_vl": (families.qwen2_5_vl, no_merge),
    "internvl": (families.internvl, fewer("image_seq_length")),
    "nvila": (families.nvila, fewer("image_seq_length")),
    "paligemma": (paligemma, fewer("image_seq_length")),
    "instructblip": (instructblip, fewer("num_query_tokens")),
    "instructblip_t5": (instructblip, fewer("num_query_tokens")),
    "blip2": (blip2, fewer("num_query_tokens")),
}


def config_for(family: str, processor: Any) -> PreTrainedConfig:
    config = tiny_models.FAMILIES[family]().config
    config.image_token_id = config.image_token_index = processor.tokenizer.convert_tokens_to_ids(
        str(processor.image_token)
    )
    config.text_config.vocab_size = 2048
    if family == "qwen2_5_vl":
        config.vision_config.patch_size = 8
    return config


@pytest.mark.parametrize("family", FAMILIES)
def test_image_tokens_of_every_family(family: str, tmp_path: Path) -> None:
    build, spoil = FAMILIES[family]
    processor = build(chat_template())
    source = str(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"num_additional_image_tokens": 1}')
    config = config_for(family, processor)
    assert check_agreement("m", source, processor, config) == []
    if hasattr(processor, "num_query_tokens"):  # as folders from before it was written have it
        processor.num_query_tokens = None
        assert "does not say num_query_tokens 4:" in check_agreement("m", source, processor, config)[0]
    spoil(processor)
    with pytest.raises(ValueError, match="processor and model of m disagree about images: the processor writes"):
        check_agreement("m", source, processor, config)


def test_a_model_that_drops_features_without_a_word_is_not_let_do_so(tmp_path: Path, monkeypatch) -> None:
    """transformers counts for Idefics3 since 5.21, which is not for Python 3.10."""
    monkeypatch.setattr(modeling_idefics3, "torch_compilable_check", lambda *_: None, raising=False)
    processor = families.idefics3(chat_template())
    (tmp_path / "processor_config.json").write_text("{}")
    config = config_for("idefics3", processor)
    assert check_agreement("m", str(tmp_path), processor, config) == []
    for count in (3, 5):
        processor.image_seq_len = count
        with pytest.raises(ValueError, match="which the model refuses .it has [0-9]+ image features for [0-9]+ image"):
            check_agreement("m", str(tmp_path), processor, config)


@pytest.mark.parametrize("changes", [{"patch_size": 4}, {"temporal_patch_size": 1}, {"spatial_merge_size": 1}])
def test_patches_of_another_size(changes: dict[str, int], tmp_path: Path) -> None:
    """Qwen's processor cuts images into patches itself."""
    processor = families.qwen2_5_vl(chat_template())
    (tmp_path / "processor_config.json").write_text("{}")
    config = config_for("qwen2_5_vl", processor)
    for name, value in changes.items():
        setattr(config.vision_config, name, value)
    with pytest.raises(ValueError, match="processor and model of m disagree about images"):
        check_agreement("m", str(tmp_path), processor, config)


def test_rows_beside_the_vocabulary_count() -> None:
    """Mllama's image token is the first id behind its vocabulary; its embedding has eight rows more."""
    config = MllamaConfig(
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2}
        | {"intermediate_size": 24, "image_size": 16, "patch_size": 8, "vision_output_dim": 32}
        | {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]},
        text_config={"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "cross_attention_layers": [1], "pad_token_id": 0},
    )
    assert _num_rows(config, _hollow(config)) == 40


def test_the_check_leaves_the_random_state_of_the_run_alone(folder: Path) -> None:
    """Otherwise what a run draws would depend on how often the check was made before."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_processor(str(folder))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("layer", "kept"), [(-2, 3), (-1, 2), (-9, 4), (1, 4), ([-1, -2], 4)])
def test_the_tower_that_is_tried_is_no_deeper_than_its_features(layer: Any, kept: int) -> None:
    vision = VISION | {"num_hidden_layers": 4}
    config = tiny_llava().config
    config.vision_config, config.vision_feature_layer = CLIPVisionConfig(**vision), layer
    assert _hollow(config).config.vision_config.num_hidden_layers == kept
    assert config.vision_config.num_hidden_layers == 4
