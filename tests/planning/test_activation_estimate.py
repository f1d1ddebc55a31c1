"""The estimate against what autograd really keeps of one decoder layer."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from dowser_pl.models.layers import decoder_layers, find_layers
from dowser_pl.planning.activations import Batch, activation_bytes
from dowser_pl.planning.model import decoder_of
from tests.tiny_models import tiny_llava

ROWS, TOKENS = 3, 40
WIDER = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "head_dim": 16}


def prepared(layers, dtype, attention, checkpointing, **changes):
    model = tiny_llava(num_hidden_layers=layers, **(WIDER | changes)).to(dtype)
    model.set_attn_implementation(attention)
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        model.disable_input_require_grads()
    model.train().requires_grad_(False)
    for layer in find_layers(model, None, ["attn", "mlp"]).values():
        layer.weight.requires_grad_(True)
    return model


def kept(model):
    """Bytes of all storages that the graph of the loss keeps, weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    tokens = torch.randint(10, 90, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens, use_cache=False).loss
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("heads", [4, 2], ids=["all heads", "grouped heads"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_layer_keeps(dtype, attention, heads):
    """Of four layers less two, so that what comes before and after falls out; the first keeps less."""
    held, estimates = [], []
    for layers in (2, 4):
        model = prepared(layers, dtype, attention, False, num_key_value_heads=heads)
        held.append(kept(model))
        decoder = decoder_of(model, list(decoder_layers(model)), "32-true")
        assert decoder.layers == layers and decoder.fused_attention == (attention == "sdpa")
        estimates.append(activation_bytes(decoder, Batch(ROWS, TOKENS, False)))
    assert estimates[1] - estimates[0] == pytest.approx(held[1] - held[0], rel=0.06)


def test_what_a_layer_keeps_with_gradient_checkpointing():
    held, estimates = [], []
    for layers in (2, 4):
        model = prepared(layers, torch.bfloat16, "sdpa", True)
        held.append(kept(model))
        decoder = decoder_of(model, list(decoder_layers(model)), "32-true")
        estimates.append(activation_bytes(decoder, Batch(ROWS, TOKENS, True)))
    assert estimates[1] - estimates[0] == pytest.approx(held[1] - held[0], rel=0.06)


def test_only_what_lies_above_the_first_trained_layer_keeps_anything():
    model = prepared(3, torch.float32, "sdpa", False)
    blocks = list(decoder_layers(model))
    assert decoder_of(model, blocks, "32-true").layers == 3
    blocks[0].requires_grad_(False)
    assert decoder_of(model, blocks, "32-true").layers == 2
    model.get_input_embeddings().requires_grad_(True)
    assert decoder_of(model, blocks, "32-true").layers == 3


def test_autocast_computes_in_16_bits_and_keeps_rounded_weights():
    model = prepared(3, torch.float32, "sdpa", False)
    blocks = list(decoder_layers(model))
    plain, mixed = (decoder_of(model, blocks, precision) for precision in ("32-true", "bf16-mixed"))
    weights = sum(weight.nbytes for block in blocks for weight in block.parameters())
    assert mixed == replace(plain, itemsize=2, cast_bytes=weights // 2)
