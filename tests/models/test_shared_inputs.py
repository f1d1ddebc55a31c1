"""Which matrices share an input: found without weights, against what is seen where inputs are measured."""

import pytest
import torch

from dowser_pl.importance.gram import InputGrams
from dowser_pl.models.layers import find_layers, text_inputs, text_model
from dowser_pl.models.lora import Adapters, LoraSettings
from dowser_pl.models.shared_inputs import input_owners
from tests.tiny_models import FAMILIES, tiny_llava

DECODERS = [name for name in FAMILIES if not name.endswith("_t5")]


@pytest.mark.parametrize("family", DECODERS)
def test_it_is_what_a_pass_with_weights_sees(family):
    model = FAMILIES[family]().eval()
    layers = find_layers(model, None, ["attn", "mlp"])
    text, tokens = text_model(model), torch.tensor([[5, 6, 7]])
    with torch.no_grad(), InputGrams(layers) as grams:
        grams.start(None)
        text(**text_inputs(text, tokens, torch.ones_like(tokens)), use_cache=False)
    found = input_owners(model, layers)
    assert found == {name: grams.shared_with(name) for name in layers}
    assert len(set(found.values())) == 12 if family != "blip2" else len(set(found.values())) < len(layers)


def test_adapters_and_packed_weights_change_nothing():
    model = tiny_llava()
    layers = find_layers(model, 1, ["attn", "mlp"])
    found = input_owners(model, layers)
    assert sorted(map(list(found.values()).count, set(found.values()))) == [1, 1, 2, 3]
    Adapters(model, layers, LoraSettings(r=2))
    assert input_owners(model, layers) == found and input_owners(model.to("meta"), layers) == found


def test_what_cannot_be_run_without_weights_is_each_by_itself():
    model = FAMILIES["instructblip_t5"]()
    layers = find_layers(model, None, ["attn", "mlp"])
    assert input_owners(model, layers) == {name: name for name in layers}
