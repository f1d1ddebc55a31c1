"""bitsandbytes weights: read as what they multiply by, scored like the same weights unpacked, never tuned."""

import bitsandbytes
import pytest
import torch

from dowser_pl.importance import FACTORS, PRODUCTS, Probe, fingerprint, measure, probing_mode, write_prompts
from dowser_pl.models.layers import find_layers
from dowser_pl.models.loading import load_model
from dowser_pl.models.quantized import base_weight, is_quantized, keep_as_loaded, quantization_options
from tests.tiny_models import make_processor, tiny_llava

PROBE = Probe(num_prompts=4, num_probes=2, num_tokens=16, batch_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")  # 4-bit weights come in blocks of 64
    tiny_llava(hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(path)
    return str(path)


def factors_of(model, prompts):
    with probing_mode(model):
        return measure(model, find_layers(model, None, ["attn", "mlp"]), prompts, PROBE, FACTORS + PRODUCTS)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_packed_weight_reads_as_what_it_multiplies_by(folder, quantization):
    model = load_model(folder, dtype="float32", quantization=quantization)
    for linear in find_layers(model, None, ["attn", "mlp"]).values():
        assert is_quantized(linear)
        weight = base_weight(linear)
        assert weight.shape == (linear.out_features, linear.in_features) and not weight.requires_grad
        linear.train()  # in eval mode bitsandbytes rounds the scales for the CPU
        columns = linear(torch.eye(linear.in_features)[None]).detach()[0].T
        torch.testing.assert_close(weight.float(), columns.float(), rtol=2e-3, atol=1e-3 * float(weight.abs().max()))
    assert not is_quantized(model.get_output_embeddings())


def test_a_weight_that_evaluation_reordered_reads_the_same():
    torch.manual_seed(0)
    linear = bitsandbytes.nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    before = base_weight(linear).clone()
    with torch.no_grad():
        linear.eval()(torch.randn(2, 3, 128))
    torch.testing.assert_close(base_weight(linear), before, rtol=5e-3, atol=0)  # scales are bfloat16 now


@pytest.mark.parametrize("train", [True, False])
def test_what_is_kept_as_loaded_has_the_same_bits_after_a_forward_pass(train):
    torch.manual_seed(0)
    linear = bitsandbytes.nn.Linear4bit(128, 64, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")
    keep_as_loaded(linear)
    before = {name: value.clone() for name, value in linear.state_dict().items()}
    with torch.no_grad():
        linear.train(train)(torch.randn(2, 3, 128))
    after = linear.state_dict()
    assert "bias" in after and all(after[name].dtype == value.dtype for name, value in before.items())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_plain_weight_reads_as_itself(folder):
    linear = next(iter(find_layers(load_model(folder), None, ["attn"]).values()))
    assert not is_quantized(linear)
    assert base_weight(linear).data_ptr() == linear.weight.data_ptr()


@pytest.mark.parametrize(("quantization", "close"), [("4bit", 0.1), ("8bit", 0.3)])
def test_factors_of_a_quantized_model_are_those_of_its_weights_unpacked(folder, quantization, close):
    """8-bit matrices round their inputs too, and 4-bit ones may multiply in bfloat16 on the CPU."""
    packed = load_model(folder, dtype="float32", quantization=quantization)
    unpacked = load_model(folder, dtype="float32")
    for name, linear in find_layers(packed, None, ["attn", "mlp"]).items():
        unpacked.get_submodule(name).weight.data.copy_(base_weight(linear))
    prompts = write_prompts(unpacked, make_processor().tokenizer, PROBE, range(4))
    first, second = factors_of(packed, prompts), factors_of(unpacked, prompts)
    for name, statistics in second.layers.items():
        for statistic, expected in statistics.items():
            difference = (first.layers[name][statistic] - expected).norm() / expected.norm()
            assert float(difference) < close, (name, statistic)


def test_every_packing_has_a_fingerprint_of_its_own(folder):
    prints = {fingerprint(load_model(folder, quantization=q)) for q in ("none", "8bit", "4bit")}
    assert len(prints) == 3


def test_an_unknown_packing_is_named():
    with pytest.raises(ValueError, match="got quantization='2bit', expected one of"):
        quantization_options("2bit", "float32")
