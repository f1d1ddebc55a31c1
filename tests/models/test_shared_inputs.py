"""Which matrices share an input: found without weights, against what is seen where inputs are measured."""

import pytest
import torch

from dowser_pl.importance.gram import InputGrams
from dowser_pl.models.layers import find_layers, text_inputs, text_model
from dowser_pl.models.lora import Adapters, LoraSettings
from dowser_pl.models.shared_inputs import input_owners
from tests.tiny_models import FAMILIES, tiny_llava

NOT_RUN = ("instructblip_t5", "minicpmv")  # demands what a decoder is to read; looks at the values of its mask
DECODERS = [name for name in FAMILIES if name not in NOT_RUN]


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
    in_each = 15 if family == "mllama" else 12  # one of its layers does not read text: each matrix is by itself
    assert len(set(found.values())) == in_each


def test_adapters_and_packed_weights_change_nothing():
    model = tiny_llava()
    layers = find_layers(model, 1, ["attn", "mlp"])
    found = input_owners(model, layers)
    assert sorted(map(list(found.values()).count, set(found.values()))) == [1, 1, 2, 3]
    Adapters(model, layers, LoraSettings(r=2))
    assert input_owners(model, layers) == found and input_owners(model.to("meta"), layers) == found


@pytest.mark.parametrize("family", NOT_RUN)
def test_what_cannot_be_run_without_weights_is_each_by_itself(family):
    model = FAMILIES[family]()
    layers = find_layers(model, None, ["attn", "mlp"])
    assert input_owners(model, layers) == {name: name for name in layers}
