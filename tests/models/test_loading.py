"""Models and processors as from_pretrained gives them, or an error that says what is wrong with the files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BartConfig, BertConfig, CLIPConfig, LlamaConfig, T5Config
from transformers.image_processing_backends import PilBackend

from dowser_pl.models import sources
from dowser_pl.models.loading import _is_finite, load_model, load_processor, skeleton
from tests.tiny_models import FAMILIES, make_processor, save_tiny_llava, tiny_llava

Weights = dict[str, Tensor]
HEAD_ON_DISK = "language_model.lm_head.weight"  # transformers renames it to lm_head.weight while it loads


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[Weights], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def same(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_as_saved(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert same(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(saved: Path, tmp_path: Path, dtype: str) -> None:
    assert load_model(str(saved), dtype=dtype).dtype == getattr(torch, dtype)
    half = save_tiny_llava(tmp_path, dtype=getattr(torch, dtype))
    assert load_model(str(half), dtype="auto").dtype == getattr(torch, dtype)


def test_attention_implementation(saved: Path) -> None:
    model = load_model(str(saved), attn_implementation="eager")
    assert model.model.language_model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match=r"attn_implementation=\"fast\"` is not supported"):
        load_model(str(saved), attn_implementation="fast")


def test_embedded_alias(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.EMBEDDED, "embedded:world", saved)
    assert same(load_model("embedded:world").state_dict(), tiny_llava().state_dict())
    assert load_processor("embedded:world").tokenizer.vocab_size == 96


def test_gradient_checkpointing_recomputes_tuned_layers_only(saved: Path) -> None:
    tokens = torch.arange(10, 20)[None]
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = load_model(str(saved), gradient_checkpointing=checkpointing).train()
        model.requires_grad_(False)
        projections = [layer.mlp.up_proj for layer in model.model.language_model.layers]
        projections[1].weight.requires_grad_(True)
        forwards: list[int] = []
        for index, projection in enumerate(projections):
            projection.register_forward_hook(lambda *_, index=index, seen=forwards: seen.append(index))
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        gradients.append(projections[1].weight.grad)
        calls.append(forwards)
    assert calls == [[0, 1, 2], [0, 1, 2, 2, 1]]
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda w: w.pop(HEAD_ON_DISK), "1 missing from the files: lm_head.weight"),
        (lambda w: w.update({"extra.weight": torch.zeros(2)}), "1 unknown to the model: extra.weight"),
        (lambda w: w.update({HEAD_ON_DISK: torch.zeros(2, 3)}), r"lm_head.weight \(2, 3\) for \(96, 32\)"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_weights_that_do_not_fit(folder: Path, change: Callable[[Weights], object], problem: str) -> None:
    change_weights(folder, change)
    with pytest.raises(ValueError, match=rf"do not fit its config.json.*{problem}"):
        load_model(str(folder))


def test_damaged_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"the weights of .* are damaged"):
        load_model(str(folder))


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no file named model.safetensors.* Fix: copy the missing files"):
        load_model(str(folder))


def test_damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json of .* is damaged \(Expecting .*, expected JSON .*Fix: copy"):
        load_model(str(folder))


def test_a_setting_of_another_type(folder: Path) -> None:
    change_json(folder / "config.json", image_token_index="four")
    for load in (load_model, load_processor):
        with pytest.raises(
            ValueError, match=r"cannot load .*: Validation error for field 'image_token_index': .*int, got"
        ):
            load(str(folder))


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (LlamaConfig, "LlamaForSequenceClassification"),
        (LlamaConfig, "LlamaModel"),
        (BertConfig, "BertForMaskedLM"),
        (BartConfig, "BartForConditionalGeneration"),
        (T5Config, "T5ForConditionalGeneration"),
        (CLIPConfig, "CLIPModel"),
    ],
)
def test_a_model_that_writes_no_text(config: type, architecture: str, tmp_path: Path) -> None:
    """Or one of which a half would be loaded; before a weight or a tokenizer is looked for, by whoever asks first."""
    config(architectures=[architecture]).save_pretrained(tmp_path)
    expected = rf"a {architecture} \(model type .*, expected an image-text-to-text .* or a language model such as Llama"
    for load in (load_model, load_processor, skeleton):
        with pytest.raises(ValueError, match=expected):
            load(str(tmp_path))


def test_model_type_of_another_version(folder: Path) -> None:
    change_json(folder / "config.json", model_type="later_vlm")
    with pytest.raises(ValueError, match=r"model_type this version of transformers does not know"):
        load_model(str(folder))


@pytest.mark.parametrize("model_type", ["own", "minicpmv", "molmo", "internvl_chat", "phi3_v"])
def test_code_is_not_run_unless_trusted(model_type: str, folder: Path) -> None:
    """Families of which transformers has no class among them."""
    change_json(folder / "config.json", model_type=model_type, auto_map={"AutoConfig": "own.OwnConfig"})
    with pytest.raises(ValueError, match=r"brings its own Python code.* set trust_remote_code to true"):
        load_model(str(folder))


def test_unknown_dtype(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"got dtype='float64', expected one of \['auto', 'float32'"):
        load_model(str(saved), dtype="float64")


def test_processor_reads_text_and_images_with_pillow(saved: Path) -> None:
    processor = load_processor(str(saved))
    image = Image.new("RGB", (30, 20), "red")
    batch = processor(images=image, text="<s> <image> what colour ?", return_tensors="pt")
    reference = make_processor()(images=image, text="<s> <image> what colour ?", return_tensors="pt")
    assert isinstance(processor.image_processor, PilBackend)
    assert same(batch, reference)
    assert batch["input_ids"].tolist()[0].count(processor.image_token_id) == 4


def test_image_processor_is_moved_to_pillow(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where torchvision is installed and AutoProcessor prefers it."""

    class Preferred(type(make_processor().image_processor).__base__.__base__):  # an image processor, not on PIL
        pass

    processor = make_processor()
    processor.image_processor = Preferred()
    monkeypatch.setattr("dowser_pl.models.loading.AutoProcessor.from_pretrained", lambda *_, **__: processor)
    assert isinstance(load_processor(str(saved)).image_processor, PilBackend)


def test_padding_token_falls_back_to_the_end_token(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    change_json(config, pad_token=None)
    assert load_processor(str(folder)).tokenizer.pad_token == "</s>"
    change_json(config, eos_token=None)
    with pytest.raises(ValueError, match=r"neither a padding nor an end token"):
        load_processor(str(folder))


def test_no_processor(folder: Path) -> None:
    (folder / "processor_config.json").unlink()
    with pytest.raises(ValueError, match=r"Can't load image processor"):
        load_processor(str(folder))


def test_no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"without tokenizer\.json .*, expected .* Fix: copy its files"):
        load_processor(str(folder))


def test_tokenizer_is_not_a_processor(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model sees."""
    tokenizer = make_processor().tokenizer
    monkeypatch.setattr("dowser_pl.models.loading.AutoProcessor.from_pretrained", lambda *_, **__: tokenizer)
    with pytest.raises(ValueError, match=r"got a TokenizersBackend .*expected a processor of images and text"):
        load_processor(str(saved))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("name", "at_run_time"),
    [
        (HEAD_ON_DISK, "lm_head.weight"),
        ("multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias"),
        ("language_model.model.layers.1.input_layernorm.weight", "language_model.layers.1.input_layernorm.weight"),
    ],
)
def test_weights_that_are_no_numbers(folder: Path, name: str, at_run_time: str, value: float) -> None:
    def spoil(weights: Weights) -> None:
        weights[name].view(-1)[3] = value

    change_weights(folder, spoil)
    count = "1 NaN and 0 infinite" if value != value else "0 NaN and 1 infinite"
    with pytest.raises(ValueError, match=rf"no finite numbers in 1 of 73 tensors: .*{at_run_time} \({count} of"):
        load_model(str(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("place", [0, 5, 99, 100])
def test_what_is_finite(dtype: torch.dtype, place: int) -> None:
    """Wherever the odd value is; infinite values, which masks have, are another matter than NaN."""
    values = torch.linspace(-3, 3, 101).to(dtype)
    assert _is_finite(values, False) and _is_finite(values[:0], False)
    for value in (float("nan"), float("inf"), -float("inf")):
        odd = values.clone()
        odd[place] = value
        if not odd[place].float().isnan() and not odd[place].float().isinf():
            continue  # float8 has no infinity
        assert not _is_finite(odd, False)
        assert _is_finite(odd, True) == bool(odd[place].float().isinf())


def test_values_that_overflow_in_half_precision(folder: Path) -> None:
    change_weights(folder, lambda weights: weights[HEAD_ON_DISK].view(-1)[3].fill_(1e6))
    load_model(str(folder), dtype="bfloat16")
    with pytest.raises(ValueError, match=r"lm_head.weight \(0 NaN and 1 infinite .*converted to float16"):
        load_model(str(folder), dtype="float16")


def test_large_values_are_finite(folder: Path) -> None:
    """Though their sum is not."""
    change_weights(folder, lambda weights: weights[HEAD_ON_DISK].view(-1)[:4].fill_(3e38))
    load_model(str(folder))


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_weights_that_were_no_numbers(folder: Path, quantization: str) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    change_weights(folder, lambda weights: weights[name].view(-1)[3].fill_(float("nan")))
    with pytest.raises(ValueError, match=r"no finite numbers in 1 of"):
        load_model(str(folder), quantization=quantization)


@pytest.mark.parametrize(
    "name", ["language_model.model.layers.0.self_attn.rotary_emb.inv_freq", "vision_tower.vision_model.position_ids"]
)
def test_leftovers_of_early_files_do_no_harm(folder: Path, name: str) -> None:
    change_weights(folder, lambda weights: weights.update({name: torch.arange(4.0)}))
    load_model(str(folder))
