import math
from itertools import pairwise

import pytest
import torch
from torch.autograd import gradcheck

from dowser_pl.functional import divergence
from dowser_pl.functional.divergence import agreement, kl_divergence, top_outcomes


@pytest.fixture(params=["one chunk", "chunks of two positions"])
def chunked(request, monkeypatch):
    if request.param != "one chunk":
        monkeypatch.setattr(divergence, "_CHUNK", 14)


def logits(seed: int, positions: int = 5, vocabulary: int = 7, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 2 * torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain(base: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
    p, q = base.double().softmax(-1), current.double().softmax(-1)
    return (p * (p / q).log()).sum(-1)


def test_by_hand():
    base = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]).log()
    current = torch.tensor([[0.25, 0.25, 0.5], [0.8, 0.1, 0.1]]).log().requires_grad_()
    found = kl_divergence(base, current)
    # .5 log 2 + .25 log 1 + .25 log 1/2
    torch.testing.assert_close(found, torch.tensor([0.25 * math.log(2), 0.0]))
    found.sum().backward()
    torch.testing.assert_close(current.grad, torch.tensor([[-0.25, 0.0, 0.25], [0.0, 0.0, 0.0]]))


def test_by_hand_with_the_rest_as_one_outcome():
    base = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]).log()
    current = torch.tensor([[0.25, 0.25, 0.5], [0.4, 0.5, 0.1]]).log()
    expected = [0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75), 0.8 * math.log(2) + 0.2 * math.log(0.2 / 0.6)]
    torch.testing.assert_close(kl_divergence(top_outcomes(base, 1), current), torch.tensor(expected))


def test_adding_a_number_to_all_logits_changes_nothing():
    torch.testing.assert_close(kl_divergence(logits(0) + 30.0, logits(1) - 50.0), kl_divergence(logits(0), logits(1)))


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_against_float64(dtype, tolerance):
    base, current = logits(0, dtype=dtype), logits(1, dtype=dtype)
    found = kl_divergence(base, current)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), plain(base, current), rtol=tolerance, atol=tolerance)


def test_half_precision_logits_are_compared_in_float32():
    base, current = logits(0, dtype=torch.bfloat16), logits(1, dtype=torch.bfloat16)
    found = kl_divergence(base, current)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), plain(base, current), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("k", [None, 1, 3, 7])
def test_gradient_against_finite_differences(k):
    base = logits(0) if k is None else top_outcomes(logits(0), k)
    assert gradcheck(lambda current: kl_divergence(base, current), (logits(1).requires_grad_(),))


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("k", [None, 3])
def test_gradient_in_float32_is_that_of_autograd_in_float64(k):
    base, current = logits(0, dtype=torch.float32), logits(1, dtype=torch.float32).requires_grad_()
    weights = torch.arange(1.0, 6.0)
    (kl_divergence(base if k is None else top_outcomes(base, k), current) * weights).sum().backward()
    q = current.detach().double().requires_grad_()
    p = base.double().softmax(-1)
    if k is None:
        expected = (p * (p.log() - q.log_softmax(-1))).sum(-1)
    else:
        order = p.argsort(-1, descending=True)
        p, sorted_q = p.gather(1, order), q.softmax(-1).gather(1, order)
        p = torch.cat([p[:, :k], p[:, k:].sum(-1, keepdim=True)], 1)
        sorted_q = torch.cat([sorted_q[:, :k], sorted_q[:, k:].sum(-1, keepdim=True)], 1)
        expected = (p * (p / sorted_q).log()).sum(-1)
    (expected * weights).sum().backward()
    torch.testing.assert_close(current.grad.double(), q.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [None, 1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_no_distance_from_itself(k, dtype):
    current = logits(0, dtype=dtype).requires_grad_()
    base = current.detach() if k is None else top_outcomes(current.detach(), k)
    found = kl_divergence(base, current)
    assert torch.equal(found, torch.zeros(5))
    found.sum().backward()
    assert current.grad.abs().max() < 1e-6
    assert agreement(base, current).all()


def test_all_outcomes_kept_is_the_full_divergence_and_fewer_are_no_more():
    base, current = logits(0), logits(1)
    full = kl_divergence(base, current)
    torch.testing.assert_close(kl_divergence(top_outcomes(base, 7), current), full)
    torch.testing.assert_close(kl_divergence(top_outcomes(base, 70), current), full)
    found = [kl_divergence(top_outcomes(base, k), current) for k in range(1, 8)]
    assert all((fewer <= more + 1e-12).all() for fewer, more in pairwise(found))


def test_words_that_neither_says_add_nothing_and_one_that_the_current_model_lost_costs_everything():
    base, current = logits(0), logits(1)
    base[:, 2] = current[:, 2] = -torch.inf
    others = [0, 1, 3, 4, 5, 6]
    torch.testing.assert_close(kl_divergence(base, current), kl_divergence(base[:, others], current[:, others]))
    current[:, 3] = -torch.inf
    assert torch.isinf(kl_divergence(base, current)).all()


def test_a_scaled_loss_keeps_small_gradients_in_half_precision():
    """As a gradient scaler needs: what is scaled afterwards would have been rounded to nothing."""
    base = torch.zeros(1, 2)
    current = torch.tensor([[0.0, 2.0**-10]], dtype=torch.float16, requires_grad=True)
    (kl_divergence(base, current).sum() * 2.0**-18 * 2.0**16).backward()
    assert current.grad.abs().min() > 0


def test_agreement_sees_the_likeliest_outcome_alone():
    base = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [0.0, 5.0, 5.0]])
    current = torch.tensor([[9.0, 1.0, 8.0], [3.0, 2.0, 1.0], [0.0, 5.0, 5.0]])
    assert agreement(base, current).tolist() == [True, False, True]
    assert agreement(top_outcomes(base, 1), current).tolist() == [True, False, True]


def test_no_positions_give_none():
    current = torch.zeros(0, 3, requires_grad=True)
    found = kl_divergence(torch.zeros(0, 3), current)
    assert found.shape == (0,)
    found.sum().backward()
    assert current.grad.shape == (0, 3)
