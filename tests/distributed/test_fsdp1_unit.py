"""How many units of a model that FSDP1 has cut are gathered at a time, looked at on two ranks."""

import pytest
import torch

from dowser_pl.distributed.fsdp1_unit import fsdp1_model_of
from dowser_pl.distributed.models import run_reduced_grad_hooks
from dowser_pl.models.layers import decoder_layers
from dowser_pl.strategies.fsdp1 import flat_shard_model
from tests.distributed.harness import RankError, run
from tests.distributed.test_sharded_families import measured
from tests.tiny_models import tiny_llava


def gathered(model):
    """Which units hold the whole of their weights: decoder layers by number, then all else."""
    flat = fsdp1_model_of(model)
    storages = [unit._handle.flat_param._full_param_padded.untyped_storage() for unit in (*flat.units, flat.root)]
    return [number for number, storage in enumerate(storages) if storage.nbytes()]


def looked_at():
    """What was gathered whenever a layer ran, forward and backward, in the importance pass and in a step; and after."""
    model, seen = tiny_llava(num_hidden_layers=5).eval(), []
    flat_shard_model(model, torch.device("cpu"))
    for layer in decoder_layers(model):
        layer.module.mlp.down_proj.register_forward_hook(lambda *_: seen.append(gathered(model)))
        layer.module.mlp.down_proj.register_full_backward_hook(lambda *_: seen.append(gathered(model)))
    measured(model)
    probed, seen[:] = [*seen, gathered(model)], []
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        model(input_ids=tokens)
    alone, seen[:] = [*seen, gathered(model)], []
    model(input_ids=tokens, labels=tokens).loss.backward()
    kept = sum(weight.grad is not None for weight in model.parameters())
    run_reduced_grad_hooks(model)
    return probed, alone, [*seen, gathered(model)], kept, sum(weight.grad is not None for weight in model.parameters())


def test_one_layer_is_gathered_at_a_time_and_none_between():
    for probed, alone, trained, kept, left in run(looked_at):
        for seen in (probed, alone, trained):
            assert seen.pop() == [] and len(seen) >= 5
            assert all(5 in each for each in seen), "what lies beside the layers"
            assert {layer for each in seen for layer in each} == set(range(6))
        assert max(map(len, alone)) == 2
        assert max(map(len, probed)) <= 3  # the first layer takes no gradient further and stays for the next pass
        assert max(map(len, trained)) <= 3  # the next one is fetched ahead
        assert kept > 0 and left == 0


def of_two_precisions():
    model = tiny_llava()
    model.lm_head.bfloat16()
    flat_shard_model(model, torch.device("cpu"))


def test_units_of_two_precisions_are_refused():
    with pytest.raises(RankError, match="got weights of bfloat16 and float32 in a LlavaForConditionalGeneration"):
        run(of_two_precisions)
