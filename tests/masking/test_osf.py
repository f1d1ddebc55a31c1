"""Training between two projections: against float64, peft's reach, and a resumed run bit by bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dowser_pl.errors import DowserError
from dowser_pl.functional.null_space import Directions, projected
from dowser_pl.functional.singular import singular_directions
from dowser_pl.masking import SoftEntries
from dowser_pl.methods import OSF
from tests.masking.test_soft import SHAPES, adamw, make, train

METHOD = OSF()


def directions(method=METHOD):
    found = {}
    for name, weight in make().items():
        outputs, inputs = singular_directions(weight, method.rank_of(*weight.shape))
        found[name] = replace(inputs, outputs=outputs.vectors)
    return found


def projections(weight, rank):
    """P_L and P_R in float64, by numpy."""
    outer, _, inner = np.linalg.svd(weight.detach().double().numpy())
    left, right = torch.tensor(outer[:, :rank].copy()), torch.tensor(inner[:rank].T.copy())
    return torch.eye(len(left)).double() - left @ left.T, torch.eye(len(right)).double() - right @ right.T


def test_half_of_the_smaller_side_stays_and_something_may_move():
    assert [METHOD.rank_of(*shape) for shape in SHAPES.values()] == [2, 2]
    assert OSF(0.01).rank_of(6, 5) == 1 and OSF(0.999).rank_of(6, 5) == 4
    assert OSF(0.75).rank_of(40, 100) == OSF(0.75).rank_of(100, 40) == 30
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(DowserError, match=f"preserve is the share .*, in .0, 1.; got {share}"):
            OSF(share)


def test_both_sides_are_taken_out_of_a_move():
    """Shares of any size, on both sides the same."""
    generator = torch.Generator().manual_seed(0)
    move = torch.randn(6, 5, generator=generator)
    left, right = (torch.linalg.qr(torch.randn(side, 2, generator=generator))[0] for side in (6, 5))
    shares = torch.tensor([1.0, 0.25])
    found = projected(move, Directions(right, shares, outputs=left))
    first, second = (
        torch.eye(len(each)).double() - each.double() @ shares.diag().double() @ each.double().T
        for each in (left, right)
    )
    torch.testing.assert_close(found.double(), first @ move.double() @ second, rtol=1e-5, atol=1e-6)


def test_w_is_w0_plus_the_move_between_both_projections_after_every_step():
    """AdamW that decays on the offset in float64, with the gradients of the model that holds the projected one."""
    weights = make()
    entries = SoftEntries(weights, METHOD, {}, directions())
    train(entries, adamw(entries.parameters()), weights, range(5))

    base = {name: weight.detach().double() for name, weight in make().items()}
    offset = {name: torch.zeros_like(weight).requires_grad_() for name, weight in base.items()}
    sides = {name: projections(weight, 2) for name, weight in base.items()}
    optimizer = adamw(list(offset.values()))

    def held():
        return {name: base[name] + sides[name][0] @ offset[name].detach() @ sides[name][1] for name in base}

    for step in range(5):
        current = {name: value.clone().requires_grad_() for name, value in held().items()}
        inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(10 * step)).double()
        ((torch.tanh(inputs @ current["first"].T) @ current["second"].T).pow(3).mean() * 30).backward()
        for name, value in offset.items():
            value.grad = current[name].grad
        optimizer.step()
    for name, weight in weights.items():
        torch.testing.assert_close(weight.double(), held()[name], rtol=1e-4, atol=1e-5)
        assert (weight - make()[name]).norm() > 0.01
        outer, values, inner = np.linalg.svd(base[name].numpy())
        tuned = weight.detach().double().numpy()
        for u, s, v in zip(outer.T[:2], values[:2], inner[:2], strict=True):
            assert np.abs(tuned @ v - s * u).max() < 1e-5 and np.abs(u @ tuned - s * v).max() < 1e-5


def test_what_peft_reaches_lies_between_the_projections():
    """Its own layer, with gradients that it projects, under SGD; and Adam leaves them, which ours does not."""
    osf = pytest.importorskip("peft.tuners.osf.layer")
    config = pytest.importorskip("peft.tuners.osf.config").OSFConfig
    strays = {}
    for optimizer in (torch.optim.SGD, torch.optim.Adam):
        linear = torch.nn.Linear(5, 6, bias=False)
        linear.weight.data = make()["first"].detach().clone()
        adapted = osf.Linear(linear, "default", config(), effective_rank=2)
        steps = optimizer(adapted.osf_svd_params["default"].parameters(), lr=0.01)
        for step in range(5):
            inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
            steps.zero_grad()
            adapted(inputs).pow(3).mean().backward()
            steps.step()
        moved = adapted.get_delta_weight("default").detach()
        assert moved.norm() > 0.01
        strays[optimizer.__name__] = float((projected(moved, directions()["first"]) - moved).norm() / moved.norm())
    assert strays["SGD"] < 1e-4 < 1e-2 < strays["Adam"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_goes_on_bit_by_bit(dtype, tmp_path):
    whole = make(dtype)
    entries = SoftEntries(whole, METHOD, {}, directions())
    optimizer = adamw(entries.parameters())
    train(entries, optimizer, whole, range(3))
    torch.save([entries.state_dict(), optimizer.state_dict(), whole], tmp_path / "state.pt")
    train(entries, optimizer, whole, range(3, 6))

    state, moments, weights = torch.load(tmp_path / "state.pt", weights_only=False)
    resumed = SoftEntries.resumed(weights, METHOD, state)
    optimizer = adamw(resumed.parameters())
    optimizer.load_state_dict(moments)
    train(resumed, optimizer, weights, range(3, 6))
    assert all(torch.equal(weights[key], whole[key]) for key in SHAPES)
    for key, entry in resumed.state_dict().items():
        assert entry["outputs"].shape == (SHAPES[key][0], 2) and entry["vectors"].shape == (SHAPES[key][1], 2)
        assert all(torch.equal(tensor, entries.state_dict()[key][kind]) for kind, tensor in entry.items())
    assert entries.num_bytes()["directions"] == resumed.num_bytes()["directions"] == 4 * 2 * (6 + 5 + 1 + 4 + 6 + 1)


def test_directions_of_another_matrix_are_refused():
    found = directions()
    for odd in ({}, {"first": replace(found["first"], outputs=found["second"].outputs)}):
        with pytest.raises(DowserError, match=r"first of shape \(6, 5\) got directions of . inputs"):
            SoftEntries(make(), METHOD, {}, {"second": found["second"], **odd})
