"""Where adapters begin, against numpy in float64 and by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from dowser_pl.functional.adapter_starts import corda_start, lora_null_start

RULES = {"lora_null": lora_null_start, "corda": corda_start}


def drawn(outputs=5, inputs=7, tokens=60, seed=0):
    """W, and the second moment of inputs of very different sizes."""
    random = np.random.default_rng(seed)
    mixed = np.linalg.qr(random.normal(size=(inputs, inputs)))[0]
    taken = random.normal(size=(tokens, inputs)) * np.logspace(0.5, -2, inputs) @ mixed
    return random.normal(size=(outputs, inputs)), taken.T @ taken / tokens


def started(rule, weight, moment, rank):
    left, right = RULES[rule](torch.tensor(weight), torch.tensor(moment), rank)
    assert left.shape == (len(weight), rank) and right.shape == (rank, weight.shape[1])
    assert left.dtype == right.dtype == torch.float32
    return left.double().numpy(), right.double().numpy()


@pytest.mark.parametrize("shape", [(5, 7), (9, 6), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_lora_null_is_the_matrix_on_the_least_directions(shape, rank):
    weight, moment = drawn(*shape)
    left, right = started("lora_null", weight, moment, rank)
    values, vectors = np.linalg.eigh(moment)
    assert values[0] < values[-1]
    least = vectors[:, :rank]
    np.testing.assert_allclose(left @ right, weight @ least @ least.T, atol=1e-5)
    np.testing.assert_allclose(left.T @ left, right @ right.T, atol=1e-4)  # each has the root of the singular values
    np.testing.assert_allclose(right @ vectors[:, rank:], 0, atol=1e-4)  # A0 takes nothing of what inputs mostly are


@pytest.mark.parametrize("shape", [(5, 7), (9, 6), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_corda_is_the_least_components(shape, rank):
    weight, moment = drawn(*shape)
    left, right = started("corda", weight, moment, rank)
    damped = moment + 0.01 * np.trace(moment) / len(moment) * np.eye(len(moment))
    outer, values, inner = np.linalg.svd(weight @ damped)
    count = min(shape)
    kept = [values[i] * np.outer(outer[:, i], inner[i]) @ np.linalg.inv(damped) for i in range(count - rank, count)]
    np.testing.assert_allclose(left @ right, sum(kept), atol=1e-4)
    np.testing.assert_allclose(left.T @ left, np.diag(values[count - rank : count]), atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_by_hand(rule):
    """Inputs along two axes that are known; W that is diagonal."""
    weight, moment = np.diag([1.0, 2.0, 3.0]), np.diag([4.0, 1.0, 0.01])
    left, right = started(rule, weight, moment, 1)
    np.testing.assert_allclose(left @ right, np.diag([0.0, 0.0, 3.0]), atol=1e-5)
    if rule == "lora_null":
        np.testing.assert_allclose(np.abs(left[2, 0]), 3**0.5, rtol=1e-5)
    else:  # B0 is the root of 3 (.01 + .0167), and A0 what is left of 3
        np.testing.assert_allclose(np.abs(left[2, 0]), (3 * (0.01 + 0.01 * 5.01 / 3)) ** 0.5, rtol=1e-4)


def test_all_components_of_corda_are_the_matrix():
    weight, moment = drawn(5, 7)
    left, right = started("corda", weight, moment, 5)
    np.testing.assert_allclose(left @ right, weight, atol=1e-4)


def test_inputs_that_lack_directions_are_not_taken_in_at_all():
    """Fewer tokens than inputs: LoRA-Null changes nothing for them whatever B becomes, CorDA does."""
    random = np.random.default_rng(1)
    taken, weight = random.normal(size=(3, 7)), random.normal(size=(5, 7))
    moment = taken.T @ taken / 3
    strays = {rule: np.abs(started(rule, weight, moment, 4)[1] @ taken.T).max() for rule in RULES}
    assert strays["lora_null"] < 1e-5 < 1e-3 < strays["corda"]


@pytest.mark.parametrize("rule", RULES)
def test_what_cannot_begin_is_refused(rule):
    weight, moment = drawn(5, 7)
    for rank in (0, 6):
        with pytest.raises(ValueError, match=rf"got {rank} directions .* of shape \(5, 7\), .* at most its 5"):
            started(rule, weight, moment, rank)
    for odd in (np.zeros((7, 7)), np.full((7, 7), np.nan)):
        with pytest.raises(ValueError, match="second moment of its inputs with trace"):
            started(rule, weight, odd, 2)
    with pytest.raises(ValueError, match="expected finite numbers"):
        started(rule, np.full((5, 7), np.inf), moment, 2)


@pytest.mark.parametrize(("shape", "rank"), [((5, 7), 2), ((9, 6), 3)])
def test_corda_is_what_peft_makes_of_the_same_moment(shape, rank):
    peft = pytest.importorskip("peft")
    corda = pytest.importorskip("peft.tuners.lora.corda")
    weight, moment = drawn(*shape)
    model = nn.Sequential()
    model.add_module("matrix", nn.Linear(shape[1], shape[0], bias=False))
    model.matrix.weight.data = torch.tensor(weight).float()
    settings = peft.tuners.lora.config.CordaConfig(corda_method="kpm")
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["matrix"], init_lora_weights="corda")
    config.corda_config = settings
    model.matrix.covariance_matrix = torch.tensor(moment).float()
    model.matrix.corda_method, model.matrix.rank = "kpm", rank
    corda.collect_eigens(model, config, False)
    corda.crop_corda_eigens(model, config)
    adapted = peft.get_peft_model(model, config).base_model.model.matrix
    left, right = started("corda", weight, moment, rank)
    second, first = (part.default.weight.detach().double().numpy() for part in (adapted.lora_B, adapted.lora_A))
    np.testing.assert_allclose(2 * second @ first, left @ right, atol=2e-4)
    np.testing.assert_allclose(2 * second.T @ second, left.T @ left, atol=2e-4)  # as evenly split between the two
    kept = adapted.base_layer.weight.detach().double().numpy()
    np.testing.assert_allclose(kept, weight - left @ right, atol=2e-4)
