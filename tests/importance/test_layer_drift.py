"""Where a change shows: drift of each layer's output against hidden states that the model itself returns."""

import pytest
import torch

from dowser_pl.importance.layer_drift import layer_drift, layer_outputs
from dowser_pl.importance.prompts import Prompt
from dowser_pl.models.layers import decoder_layers
from tests.tiny_models import tiny_llava
from tests.tiny_more_models import tiny_mllama

TOKENS = [[5, 9, 11, 20, 7], [8, 3, 14], [30, 31, 32, 33]]


@pytest.fixture
def network():
    return tiny_llava().eval()


@pytest.fixture
def rows():
    return [Prompt(torch.tensor(tokens), is_text=torch.ones(len(tokens), dtype=torch.bool)) for tokens in TOKENS]


@torch.no_grad()
def hidden(network):
    """Per layer (N, H) float64: its output at all positions but the last of each row, which is read alone."""
    norm, before_norm = network.model.language_model.norm, []
    hook = norm.register_forward_pre_hook(lambda _, inputs: before_norm.append(inputs[0]))
    states = [network(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states for row in TOKENS]
    hook.remove()
    layers = [[*each[1:-1], last] for each, last in zip(states, before_norm, strict=True)]
    return [torch.cat([one[0, :-1].double() for one in layer]) for layer in zip(*layers, strict=True)]


@torch.no_grad()
def test_layers_that_text_passes_by_have_not_drifted_and_the_others_keep_their_numbers(rows):
    """The second layer of this Llama 3.2 Vision reads pictures alone, and the last one was changed."""
    network = tiny_mllama().eval()
    assert network.config.text_config.cross_attention_layers == [1]
    before = layer_outputs(network, rows, 2)
    decoder_layers(network)[2].mlp.down_proj.weight.mul_(2)
    first, picture, last = layer_drift(network, rows, before, 2)
    assert first == picture == 0.0 and last > 0.01


def test_an_unchanged_model_has_not_drifted(network, rows):
    before = layer_outputs(network, rows, 2)
    assert layer_drift(network, rows, before, 2) == [0.0] * len(decoder_layers(network))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_it_is_what_the_hidden_states_say(network, rows, batch_size):
    before, expected = layer_outputs(network, rows, batch_size), hidden(network)
    changed = decoder_layers(network)[1].mlp.down_proj.weight
    with torch.no_grad():
        changed += 0.3 * torch.randn(changed.shape, generator=torch.Generator().manual_seed(3))
    found = layer_drift(network, rows, before, batch_size)
    now = hidden(network)
    assert len(found) == len(expected) == len(decoder_layers(network))
    for drift, old, new in zip(found, expected, now, strict=True):
        assert drift == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-4, abs=1e-7)
    assert found[0] == 0.0 and min(found[1:]) > 1e-3


def test_hooks_are_taken_off_again_also_where_a_pass_fails(network, rows):
    broken = [Prompt(torch.tensor([5, 10**6, 2]))]
    with pytest.raises(IndexError):
        layer_outputs(network, broken, 2)
    layer_outputs(network, rows, 2)
    assert not any(layer._forward_hooks for layer in decoder_layers(network))
