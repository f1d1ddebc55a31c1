"""Merges beside those of mergekit, the field's tool for it: its own functions, on the same weights."""

from types import SimpleNamespace

import pytest
import torch

from dowser_pl.methods import Dare, Layer, Ties
from tests.methods.test_after_fit import merged, versions

pytest.importorskip("mergekit")

from mergekit.merge_methods.generalized_task_arithmetic import ConsensusMethod, GeneralizedTaskArithmeticMerge
from mergekit.sparsify import SparsificationMethod, sparsify


def mergekit(layers, consensus, sparsification, **parameters):
    """What mergekit makes of them, every model with weight 1."""
    method = GeneralizedTaskArithmeticMerge(consensus, sparsification, True, False, "", None, None)
    tuned = [SimpleNamespace(tensor=layer.tuned, id=number) for number, layer in enumerate(layers)]
    density = parameters.pop("density")
    return method.merge_group(
        SimpleNamespace(base=SimpleNamespace(tensor=layers[0].weight), non_base=tuned),
        density=dict.fromkeys(range(len(layers)), density),
        weight=dict.fromkeys(range(len(layers)), 1.0),
        int8_mask=False,
        **parameters,
    )


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_ties(count, ratio):
    layers = versions(count)
    options = {"normalize": True, "rescale": False, "lambda": 0.7}
    theirs = mergekit(layers, ConsensusMethod.sum, SparsificationMethod.magnitude, density=ratio, **options)
    torch.testing.assert_close(merged(Ties(ratio, scale=0.7), layers), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_task_arithmetic_is_dare_without_a_drop(count):
    layers = versions(count)
    options = {"normalize": False, "rescale": False, "lambda": 0.7}
    theirs = mergekit(layers, None, None, density=1.0, **options)
    torch.testing.assert_close(merged(Dare(1.0, scale=0.7), layers), theirs, rtol=1e-6, atol=1e-6)


def test_dare_with_the_entries_that_mergekit_drew():
    layer = versions()[0]
    torch.manual_seed(0)
    kept = sparsify(layer.tuned - layer.weight, 0.3, SparsificationMethod.random)
    mask = kept != 0
    assert 0.2 < float(mask.float().mean()) < 0.4
    plain = Dare(0.3, rescale=False).merge(layer, mask)
    torch.testing.assert_close(plain, layer.weight + kept, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(Dare(0.3).merge(layer, mask), layer.weight + kept / 0.3, rtol=1e-5, atol=1e-5)


def test_dare_has_mergekits_moments():
    """Means and deviations over 400 draws each; mergekit rescales by what was drawn, here by the share as published."""
    base, tuned = torch.zeros(8, 8), torch.linspace(0.5, 2.0, 64).view(8, 8)
    ours = torch.stack([merged(Dare(0.25, seed=seed), [Layer("m", base, tuned=tuned)]) for seed in range(400)])
    torch.manual_seed(0)
    theirs = torch.stack([sparsify(tuned, 0.25, SparsificationMethod.random) / 0.25 for _ in range(400)])
    error = tuned * (3 / 400) ** 0.5  # of a mean: the variance of a draw is (1 - p) / p times the square
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)) / error).abs().mean() < 1.5
    torch.testing.assert_close(ours.std(dim=0) / tuned, theirs.std(dim=0) / tuned, rtol=0.2, atol=0.0)
