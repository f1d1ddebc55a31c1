"""The null space around every step: against float64, its limits, and a resumed run bit by bit."""

import pytest
import torch

from dowser_pl.errors import DowserError
from dowser_pl.functional.null_space import Directions, directions_of
from dowser_pl.masking import CompactEntries, SoftEntries
from dowser_pl.methods import NullSpace
from tests.masking.test_soft import SHAPES, adamw, loss_of, make, train

METHOD = NullSpace(rank=3)


def moments():
    generator = torch.Generator().manual_seed(4)
    inputs = {name: torch.randn(4, width, generator=generator).double() for name, (_, width) in SHAPES.items()}
    return {name: each.T @ each / len(each) for name, each in inputs.items()}


def directions(eps=0.1, dtype=torch.float32):
    found = {name: directions_of(moment, eps, 3) for name, moment in moments().items()}
    return {name: Directions(each.vectors.to(dtype), each.shares) for name, each in found.items()}


def test_w_is_w0_plus_the_projected_move_after_every_step():
    """AdamW that decays on the offset in float64, with the gradients of the model that holds the projected one."""
    weights = make()
    entries = SoftEntries(weights, METHOD, {}, directions())
    train(entries, adamw(entries.parameters()), weights, range(5))

    base = {name: weight.detach().double() for name, weight in make().items()}
    offset = {name: torch.zeros_like(weight).requires_grad_() for name, weight in base.items()}
    projections = {}
    for name, moment in moments().items():
        values, vectors = torch.linalg.eigh(moment)
        shares = values / (values + 0.1 * values.mean())
        shares[:-3] = 0
        projections[name] = torch.eye(len(moment)).double() - vectors @ torch.diag(shares) @ vectors.T
    optimizer = adamw(list(offset.values()))

    def held():
        return {name: base[name] + offset[name].detach() @ projections[name] for name in base}

    for step in range(5):
        current = {name: value.clone().requires_grad_() for name, value in held().items()}
        inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(10 * step)).double()
        loss = (torch.tanh(inputs @ current["first"].T) @ current["second"].T).pow(3).mean() * 30
        loss.backward()
        for name, value in offset.items():
            value.grad = current[name].grad
        optimizer.step()
    for name, weight in weights.items():
        torch.testing.assert_close(weight.double(), held()[name], rtol=1e-4, atol=1e-5)
        assert (weight - make()[name]).norm() > 0.01
        torch.testing.assert_close(entries.beside(name)["offset"].double(), offset[name].detach(), rtol=1e-4, atol=1e-5)


def test_weight_decay_alone_pulls_to_the_base():
    """SGD that decays, without a gradient: the distance from the base shrinks by 1 - lr decay in every step."""
    weights = make()
    entries = SoftEntries(weights, METHOD, {}, directions())
    train(entries, adamw(entries.parameters()), weights, range(3))
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = torch.optim.SGD(entries.parameters(), lr=0.5, weight_decay=0.2)
    for values in entries.parameters():
        values.grad = torch.zeros_like(values)
    optimizer.step()
    entries.after_step()
    for name, base in make().items():
        torch.testing.assert_close(weights[name] - base, 0.9 * (before[name] - base), rtol=1e-4, atol=1e-6)
        assert (before[name] - base).norm() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinite_eps_is_full_training_bit_by_bit(dtype):
    held, free = make(dtype), make(dtype)
    entries = SoftEntries(held, METHOD, {}, directions(float("inf"), dtype))
    train(entries, adamw(entries.parameters()), held, range(4))
    plain = CompactEntries(free, {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()})
    train(plain, adamw(plain.parameters()), free, range(4))
    assert all(torch.equal(held[name], free[name]) for name in SHAPES)
    assert entries.verify() == plain.verify() and entries.verify()[1].changed > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_goes_on_bit_by_bit(dtype, tmp_path):
    whole = make(dtype)
    entries = SoftEntries(whole, METHOD, {}, directions(dtype=dtype))
    optimizer = adamw(entries.parameters())
    train(entries, optimizer, whole, range(3))
    torch.save([entries.state_dict(), optimizer.state_dict(), whole], tmp_path / "state.pt")
    train(entries, optimizer, whole, range(3, 6))

    state, moments, weights = torch.load(tmp_path / "state.pt", weights_only=False)
    for name, weight in weights.items():  # who reads a checkpoint for the model finds it in `values`
        assert torch.equal(state[name]["values"].to(dtype).view_as(weight), weight)
    resumed = SoftEntries.resumed(weights, METHOD, state)
    optimizer = adamw(resumed.parameters())
    optimizer.load_state_dict(moments)
    train(resumed, optimizer, weights, range(3, 6))
    assert all(torch.equal(weights[key], whole[key]) for key in SHAPES)
    assert resumed.verify() == entries.verify()
    for key, entry in resumed.state_dict().items():
        assert all(torch.equal(tensor, entries.state_dict()[key][kind]) for kind, tensor in entry.items())


def test_a_matrix_that_another_hand_wrote_is_noticed():
    weights = make()
    entries = SoftEntries(weights, METHOD, {}, directions())
    train(entries, adamw(entries.parameters()), weights, range(1))
    entries.verify()
    weights["first"].data[0, 0] += 1
    with pytest.raises(RuntimeError, match="does not hold the values"):
        entries.verify()


def test_a_matrix_without_its_directions_is_refused():
    with pytest.raises(DowserError, match="second .* directions of 0 inputs"):
        SoftEntries(make(), METHOD, {}, {"first": directions()["first"]})


def test_the_loss_falls():
    weights = make()
    before = float(loss_of(weights, 0))
    entries = SoftEntries(weights, METHOD, {}, directions())
    train(entries, adamw(entries.parameters()), weights, range(5))
    assert float(loss_of(weights, 0)) < before


@pytest.mark.parametrize("options", [{"eps": 0.0}, {"rank": 0}, {"tokens": 0}])
def test_refuses_settings_out_of_range(options):
    with pytest.raises(DowserError, match=next(iter(options))):
        NullSpace(**options)
