"""Every supported family sharded over two ranks: the same prompts and factors, and every weight in its place again."""

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from dowser_pl.distributed.tensors import is_sharded, to_rank_zero
from dowser_pl.importance import Probe, measure, probing_mode, write_prompts
from dowser_pl.models.layers import find_layers, picture_layers, places_of, text_inputs, text_model
from dowser_pl.strategies.fsdp1 import flat_shard_model
from dowser_pl.strategies.fsdp2 import fully_shard_model
from tests.distributed.harness import run
from tests.distributed.sharded import both
from tests.tiny_models import FAMILIES, tiny_llava, tiny_tokenizer

SETTINGS = Probe(num_prompts=3, num_probes=2, num_tokens=8, batch_size=2, seed=1)


def measured(model):
    layers, text = find_layers(model, None, ["attn", "mlp"]), text_model(model)
    places, seeing = places_of(model, layers), picture_layers(model)  # which text does not enter
    layers = {name: layer for name, layer in layers.items() if places[name][0] not in seeing}

    def inputs(tokens, mask):
        return text_inputs(text, tokens, mask)

    with probing_mode(text):
        prompts = write_prompts(text, tiny_tokenizer(), SETTINGS, range(3), text_inputs=inputs)
        return prompts, measure(text, layers, prompts, SETTINGS, text_inputs=inputs)


def shard(model, kind):
    if kind == "fsdp1":
        flat_shard_model(model, torch.device("cpu"))
    else:
        fully_shard_model(model, init_device_mesh("cpu", (2,)))


def compare_families(kind):
    """Names of the families that differ, and how."""
    odd = []
    for family, build in FAMILIES.items():
        model = build().eval().requires_grad_(False)
        prompts, factors = measured(model)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        shard(model, kind)
        again, sharded = measured(model)
        if any(not torch.equal(one.tokens, two.tokens) for one, two in zip(prompts, again, strict=True)):
            odd.append(f"{family}: prompts")
        for name, statistics in factors.layers.items():
            odd += [
                f"{family}: {name} {s}" for s, v in statistics.items() if not torch.equal(v, sharded.layers[name][s])
            ]
        odd += [f"{family}: {name} is whole" for name, each in model.named_parameters() if not is_sharded(each)]
        after = to_rank_zero(model.state_dict(keep_vars=True))
        odd += [f"{family}: {name}" for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    return odd


@pytest.mark.slow
@both
def test_every_family_is_measured_as_in_one_process(kind):
    assert run(compare_families, kind, seconds=200) == [[], []]


def tied(kind, empty):
    """Whether head and embeddings are one tensor, and all weights those of the first rank, however they got here."""
    with torch.device("meta" if empty and distributed.get_rank() else "cpu"):
        model = tiny_llava(tie_word_embeddings=True).eval()
    expected = tiny_llava(tie_word_embeddings=True)
    shard(model, kind)
    state = to_rank_zero(model.state_dict(keep_vars=True))
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    same = all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in state.items())
    buffers = all(torch.equal(*pair) for pair in zip(model.buffers(), expected.buffers(), strict=True))
    one = head is table and len({each.data_ptr() for each in state.values()}) == len(state) - bool(state)
    return one, same, buffers


@pytest.mark.slow
@pytest.mark.parametrize("empty", [False, True])
@both
def test_tied_embeddings_stay_tied(kind, empty):
    assert run(tied, kind, empty) == [(True, True, True)] * 2
