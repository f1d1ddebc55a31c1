"""Language models of text alone: told by their config, and a tokenizer is all that they need."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    Phi4MultimodalConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from dowser_pl.models.layers import find_layers
from dowser_pl.models.loading import load_model, load_processor
from dowser_pl.models.text_only import auto_class, reads_images, reads_text_alone, tokenizer_of
from tests.tiny_models import FAMILIES, TEXT, TEXT_FAMILIES, build, make_processor, save_text_model, tiny_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_tells(family: str) -> None:
    config = FAMILIES[family]().config
    assert reads_text_alone(config) == (family in TEXT_FAMILIES)
    expected = AutoModelForCausalLM if family in TEXT_FAMILIES else AutoModelForImageTextToText
    assert auto_class("here", config) is expected


@pytest.mark.parametrize(
    "kind", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3"]
)
def test_the_names_of_settings_never_speak_of_pictures(kind: str) -> None:
    config = AutoConfig.for_model(kind)
    assert type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and reads_text_alone(config)


def test_more_than_text_is_no_text_alone() -> None:
    """Though a class of it is among those of language models."""
    assert not reads_text_alone(Phi4MultimodalConfig(architectures=["Phi4MultimodalForCausalLM"]))
    with pytest.raises(ValueError, match=r"got here, a Phi4MultimodalForCausalLM .* expected an image-text-to-text"):
        auto_class("here", Phi4MultimodalConfig(architectures=["Phi4MultimodalForCausalLM"]))


class OwnConfig(PreTrainedConfig):
    model_type = "own"


def test_code_that_comes_with_a_model_says_what_it_is() -> None:
    remote = {"AutoModelForCausalLM": "own.Own"}
    assert reads_text_alone(OwnConfig(auto_map=remote))
    assert not reads_text_alone(OwnConfig(auto_map=remote, vision_config={"size": 3}))
    assert not reads_text_alone(OwnConfig(auto_map={"AutoModel": "own.Own"}))
    assert (
        auto_class("here", OwnConfig(auto_map={"AutoModelForImageTextToText": "own.O"})) is AutoModelForImageTextToText
    )


def test_the_tokenizer_of_a_processor_or_itself() -> None:
    tokenizer, processor = tiny_tokenizer(), make_processor()
    assert tokenizer_of(tokenizer) is tokenizer and not reads_images(tokenizer)
    assert tokenizer_of(processor) is processor.tokenizer and reads_images(processor)
    tokenizer.tokenizer = SimpleNamespace()  # as those of mistral-common have
    assert tokenizer_of(tokenizer) is tokenizer


def test_the_processor_is_the_tokenizer(tmp_path: Path) -> None:
    folder = save_text_model(tmp_path)
    said: list[str] = []
    processor = load_processor(str(folder), say=said.append)
    assert isinstance(processor, PreTrainedTokenizerBase) and not said
    assert processor.chat_template and processor("red dog")["input_ids"] == tiny_tokenizer()("red dog")["input_ids"]
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token": None}))
    assert load_processor(str(folder)).pad_token == "</s>"  # type: ignore[union-attr]


def test_a_tokenizer_with_more_tokens_than_embeddings(tmp_path: Path) -> None:
    folder = save_text_model(tmp_path)
    build(type(FAMILIES["llama"]()), LlamaConfig(**TEXT | {"vocab_size": 90}), 0).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"has 6 tokens without an embedding: .*expected ids below 90"):
        load_processor(str(folder))


def test_a_model_without_its_tokenizer(tmp_path: Path) -> None:
    FAMILIES["llama"]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"without tokenizer\.json .*, expected .* Fix: copy its files"):
        load_processor(str(tmp_path))


def test_transposed_matrices_are_refused_by_name(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    build(GPT2LMHeadModel, config, 0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"transformer.h.0.attn.c_attn.weight in a Conv1D, expected .*nn.Linear"):
        find_layers(load_model(str(tmp_path)), None, ["attn", "mlp"])


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized(quantization: str, tmp_path: Path) -> None:
    model = load_model(str(save_text_model(tmp_path)), quantization=quantization)
    layers = find_layers(model, None, ["attn", "mlp"])
    assert len(layers) == 21 and not any(layer.weight.is_floating_point() for layer in layers.values())
    assert torch.isfinite(model(input_ids=torch.tensor([[5, 6, 7]])).logits).all()
