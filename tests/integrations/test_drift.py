"""Drift in a script: the numbers of the verb bit for bit, whatever the base is given as, and a model left as it was."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from dowser_pl.__main__ import main
from dowser_pl.errors import DowserError
from dowser_pl.integrations import drift, train_only
from dowser_pl.models.layers import find_layers
from dowser_pl.patches import Patch
from dowser_pl.patches.loaded import apply_to_model
from tests.integrations.untouched import left_untouched
from tests.tiny_models import save_text_model, save_tiny_llava, tiny_llava

FEW, FEWER = {"per_source": 4}, {"per_source": 1, "moved": True}
TOKENS = torch.tensor([[5, 9, 11, 20, 7, 3]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tuned(folder, tmp_path_factory):
    """A tuned folder of the base, with its patch beside the model."""
    run = tmp_path_factory.mktemp("run")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with train_only(model, masks_of(model)) as trained:
        steps(model, trained)
        trained.save_patch(run / "patch.safetensors")
    model.save_pretrained(run / "model")
    AutoProcessor.from_pretrained(folder).save_pretrained(run / "model")
    return run


def masks_of(model):
    random = torch.Generator().manual_seed(1)
    layers = find_layers(model, None, ["attn", "mlp"])
    return {name: torch.rand(layer.weight.shape, generator=random) < 0.2 for name, layer in layers.items()}


def steps(model, trained):
    optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-2)
    for _ in range(3):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def verb(tmp_path, folder, *tuned, options=()):
    line = ["drift", str(folder), *map(str, tuned), "--per-source", "4", *options, "--json", str(tmp_path / "d.json")]
    assert main(line) == 0
    return json.loads((tmp_path / "d.json").read_text())


def loaded(folder):
    return AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.slow
def test_numbers_are_those_of_the_verb_bit_for_bit(tmp_path, folder, tuned):
    told = verb(tmp_path, folder, tuned / "model", options=["--moved", str(tmp_path / "moved.png")])
    name = str(tuned / "model")
    of_path = drift(loaded(name), None, folder, moved=True, **FEW)
    of_model = drift(loaded(name), AutoProcessor.from_pretrained(folder), loaded(folder), moved=True, **FEW)
    expected = {"drift": told["drift"][name], "moved": told["moved"][name]}
    assert expected["drift"]["kl"] > 1e-4 and max(expected["moved"]["drift"]) > 0
    assert json.loads(of_path.to_json()) == json.loads(of_model.to_json()) == expected
    assert of_path.kl == expected["drift"]["kl"] and of_path.agreement == expected["drift"]["agreement"]
    said = str(of_path).splitlines()
    assert said[0].startswith("KL ") and said[-1].startswith("moved most: ")


@pytest.mark.slow
def test_pictures_and_seeds_are_those_of_the_verb(tmp_path, folder, tuned):
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        Image.new("RGB", (50, 40), (number * 80, 20, 90)).save(tmp_path / "pictures" / f"{number}.png")
    pictures = [Image.open(tmp_path / "pictures" / f"{number}.png") for number in range(2)]
    options = ["--pictures", str(tmp_path / "pictures"), "--seed", "3", "--batch-size", "2"]
    told = verb(tmp_path, folder, tuned / "model", options=options)
    found = drift(loaded(tuned / "model"), None, str(folder), seed=3, batch_size=2, pictures=pictures, **FEW)
    assert json.loads(found.to_json())["drift"] == told["drift"][str(tuned / "model")]
    assert {"train", "shuffle", "mosaic"} <= set(found.sources)


@pytest.mark.slow
def test_a_base_that_is_held_gives_the_same(tmp_path, folder, tuned):
    model, processor = loaded(folder), AutoProcessor.from_pretrained(folder)
    with train_only(model, masks_of(model)) as trained:
        steps(model, trained)
        weights = {name: each.clone() for name, each in model.state_dict().items()}
        found = [drift(model, processor, base, **FEWER) for base in (None, trained, trained.entries, folder)]
        assert all(torch.equal(each, weights[name]) for name, each in model.state_dict().items())
    model = loaded(folder)
    with Patch.open(tuned / "patch.safetensors") as patch:
        undo = apply_to_model(model, patch)
    found.append(drift(model, processor, undo, **FEWER))
    assert all(each == found[0] for each in found) and found[0].kl > 1e-4
    assert all(torch.equal(each, weights[name]) for name, each in model.state_dict().items())
    undo.remove()
    assert drift(model, processor, folder, **FEW).agreement == 1.0


def test_a_base_that_was_trained_under_its_patch_is_told(folder, tuned):
    model = loaded(folder)
    with Patch.open(tuned / "patch.safetensors") as patch:
        undo = apply_to_model(model, patch)
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.up_proj.weight += 1
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(DowserError, match="was changed after the patch was applied"):
        drift(model, AutoProcessor.from_pretrained(folder), undo, **FEW)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_both_models_are_left_as_they_were(folder, tuned):
    processor = AutoProcessor.from_pretrained(folder)
    model, base = loaded(tuned / "model"), loaded(folder)
    with left_untouched(model, processor), left_untouched(base, processor):
        drift(model, processor, base, moved=True, **FEW)


@pytest.mark.slow
def test_a_model_of_text_alone(tmp_path):
    folder = save_text_model(tmp_path / "text")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 0.1
    model.save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "tuned")
    told = verb(tmp_path, folder, tmp_path / "tuned")["drift"][str(tmp_path / "tuned")]
    assert told["kl"] > 0
    assert json.loads(drift(model, None, folder, **FEW).to_json())["drift"] == told


@pytest.mark.slow
def test_experts_are_compared_by_what_they_say_alone(tmp_path):
    folder = save_text_model(tmp_path / "base", "qwen3_moe")
    model, processor = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj += 0.1
    assert drift(model, processor, str(folder), **FEW).kl > 0
    with pytest.raises(DowserError, match="got Qwen3MoeForCausalLM, a mixture of experts, .*Fix: do not ask where"):
        drift(model, processor, str(folder), moved=True, **FEW)


def test_what_cannot_be_compared_is_refused(tmp_path, folder):
    model, processor = loaded(folder), AutoProcessor.from_pretrained(folder)
    with pytest.raises(DowserError, match=r"got nothing as the base, .*Fix: base=model\.name_or_path"):
        drift(model, processor)
    with pytest.raises(DowserError, match="got the model itself as the base"):
        drift(model, processor, model)
    with pytest.raises(DowserError, match="got no processor"):
        drift(model, None, loaded(folder))
    with pytest.raises(DowserError, match="expected a tuned model of the base, LlavaForConditionalGeneration with 96"):
        drift(tiny_llava(vocab_size=200), processor, folder, **FEW)
    with pytest.raises(DowserError, match="got per_source 0, expected at least 1"):
        drift(model, processor, folder, per_source=0)
    with pytest.raises(FileNotFoundError):
        drift(model, processor, tmp_path / "none")
    for base in (nn.Linear(2, 2), {"a": 1}):
        with pytest.raises(DowserError, match="expected a Hugging Face model"):
            drift(model, processor, base)
    adapted = get_peft_model(loaded(folder), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(DowserError, match=r"got PeftModel.*give its \.get_base_model\(\)"):
        drift(adapted, processor, folder)
