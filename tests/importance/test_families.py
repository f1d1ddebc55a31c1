"""The importance pass runs on every supported family, and no matrix is left out."""

from dataclasses import replace

import pytest
import torch

from dowser_pl.importance import FACTORS, PRODUCTS, Probe, measure, probing_mode, write_prompts
from dowser_pl.models.layers import find_layers, text_inputs, text_model
from tests.tiny_models import FAMILIES, tiny_tokenizer

SETTINGS = Probe(num_prompts=4, num_probes=2, num_tokens=12, batch_size=4, seed=1)


def factors_of(model, batch_size: int):
    layers = find_layers(model, None, ["attn", "mlp"])
    text = text_model(model)

    def inputs(tokens, mask):
        return text_inputs(text, tokens, mask)

    with probing_mode(text):
        prompts = write_prompts(text, tiny_tokenizer(), SETTINGS, range(4), text_inputs=inputs)
        settings = replace(SETTINGS, batch_size=batch_size)
        return layers, measure(text, layers, prompts, settings, FACTORS + PRODUCTS, text_inputs=inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_gets_factors_whatever_the_batch(family):
    model = FAMILIES[family]().eval()
    layers, together = factors_of(model, 4)
    _, alone = factors_of(model, 1)
    assert set(together.layers) == set(layers)
    for name, layer in layers.items():
        got = together.layers[name]
        assert got["activation"].shape == (4, layer.in_features)
        assert got["abs_gradient"].shape == got["square_gradient"].shape == (4, layer.out_features)
        assert got["token_product"].shape == got["weight_square"].shape == layer.weight.shape
        assert float(got["activation"].min()) >= 0
        for statistic, expected in alone.layers[name].items():
            scale = float(expected.max())
            assert scale > 0
            torch.testing.assert_close(got[statistic], expected, rtol=1e-3, atol=1e-4 * scale)
