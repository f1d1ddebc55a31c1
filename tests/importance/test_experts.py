"""The importance pass of matrices beside experts: J goes through the experts, whichever way these are computed."""

from dataclasses import replace

import pytest
import torch

from dowser_pl.importance import Probe, measure, probing_mode, write_prompts
from dowser_pl.methods import Layer, ModelDowser
from dowser_pl.models.layers import find_layers, text_model
from tests.importance import naive
from tests.tiny_experts import EXPERT_FAMILIES
from tests.tiny_models import tiny_tokenizer

SETTINGS = Probe(num_prompts=8, num_probes=2, num_tokens=20, batch_size=3, seed=7)
TARGETS = {"qwen2_moe": ["attn", "shared_expert.up_proj", "shared_expert.down_proj", "mlp.gate_proj"]}


def measured(family, computed, batch_size, dtype=torch.float32):
    """The text model, its matrices, the prompts and their factors."""
    model = text_model(EXPERT_FAMILIES[family]()).to(dtype)
    model.config.get_text_config()._experts_implementation_internal = computed
    layers = find_layers(model, None, TARGETS.get(family, ["attn"]))
    with probing_mode(model):
        prompts = write_prompts(model, tiny_tokenizer(), SETTINGS, range(8))
        return model, layers, prompts, measure(model, layers, prompts, replace(SETTINGS, batch_size=batch_size))


def scored(layers, factors):
    method = ModelDowser(0.1)
    found = {n: Layer(n, each.weight.detach(), **factors.grouped(4).layers[n]) for n, each in layers.items()}
    return {n: (method.score(layer), method.mask(layer)) for n, layer in found.items()}


@pytest.mark.parametrize("computed", ["grouped_mm", "eager"])
@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_scores_equal_the_naive_loop(family, computed):
    """In batches of unequal prompts, padding routed too, against prompts run one by one."""
    model, layers, prompts, factors = measured(family, computed, 3)
    expected = naive.published_loop(model, layers, prompts, SETTINGS.num_probes, SETTINGS.seed)
    for name, (score, mask) in scored(layers, factors).items():
        torch.testing.assert_close(score, expected[name], rtol=2e-5, atol=0)
        order = torch.sort(expected[name].flatten(), stable=True).indices
        assert set(mask.flatten().nonzero().flatten().tolist()) == set(order[: round(0.1 * mask.numel())].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_the_batch_and_the_way_experts_are_computed_change_no_mask(family):
    _, layers, _, one = measured(family, "eager", 1)
    _, others, _, all_at_once = measured(family, "grouped_mm", 8)
    first, second = scored(layers, one), scored(others, all_at_once)
    assert first.keys() == second.keys() and all(torch.equal(first[name][1], second[name][1]) for name in first)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_half_precision_goes_back_through_experts(family):
    _, layers, _, factors = measured(family, "grouped_mm", 4, torch.bfloat16)
    for name in layers:
        assert float(factors.layers[name]["square_gradient"].min()) >= 0
        assert float(factors.layers[name]["square_gradient"].max()) > 0
