import pytest
import torch

from dowser_pl.functional.scores import group_means, hutchinson_norm, importance, importance_of_statistic, mean_outer


def test_importance_by_hand():
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    sensitivity = torch.tensor([[1.0, 2.0], [3.0, 0.0]])  # two prompts, two outputs
    activation = torch.tensor([[1.0, 0.0, 2.0], [1.0, 4.0, 0.0]])
    # mean of outer products: [[1+3, 0+12, 2+0], [2+0, 0, 4]] / 2
    expected = torch.tensor([[2.0, 12.0, 0.5], [0.0, 0.0, 2.0]])
    assert torch.equal(importance(weight, sensitivity, activation), expected)


def test_mean_outer_is_the_running_mean_of_dense_outer_products():
    generator = torch.Generator().manual_seed(0)
    sensitivity, activation = torch.rand(9, 5, generator=generator), torch.rand(9, 7, generator=generator)
    mean = torch.zeros(5, 7)
    for count, (psi, a) in enumerate(zip(sensitivity, activation, strict=True), start=1):
        mean += (torch.outer(psi, a) - mean) / count
    torch.testing.assert_close(mean_outer(sensitivity, activation), mean, rtol=1e-6, atol=0)


def test_mean_outer_refuses_unpaired_rows():
    with pytest.raises(ValueError, match="one row per prompt"):
        mean_outer(torch.ones(2, 3), torch.ones(3, 3))


def test_half_precision_weights_are_scored_in_float32():
    score = importance(torch.full((1, 1), 3.0, dtype=torch.bfloat16), torch.ones(1, 1), torch.ones(1, 1) * 1.001)
    assert score.dtype == torch.float32
    assert score.item() == pytest.approx(3.003, rel=1e-6)


def test_group_means_with_a_smaller_last_group():
    factors = torch.tensor([[1.0], [3.0], [5.0], [7.0], [20.0]])
    assert torch.equal(group_means(factors, 2), torch.tensor([[2.0], [6.0], [20.0]]))
    assert torch.equal(group_means(factors, 1), factors)
    with pytest.raises(ValueError, match="at least 1"):
        group_means(factors, 0)


def test_hutchinson_recovers_row_norms_of_a_known_jacobian():
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(50, 6, generator=generator)  # (V logits, O outputs)
    signs = (torch.randint(0, 2, (20_000, 50), generator=generator) * 2 - 1).float()
    estimate = hutchinson_norm((signs @ jacobian).square().mean(dim=0))
    torch.testing.assert_close(estimate, jacobian.norm(dim=0), rtol=0.03, atol=0)


def test_importance_formed_in_chunks_is_the_float64_product(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(23, 17, generator=generator)
    sensitivity, activation = torch.rand(9, 23, generator=generator), torch.rand(9, 17, generator=generator)
    exact = (sensitivity.double().T @ activation.double() / 9 * weight.double().abs()).float()
    assert torch.equal(importance(weight, sensitivity, activation), exact)
    monkeypatch.setattr("dowser_pl.functional.scores._CHUNK", 40)
    assert torch.equal(importance(weight, sensitivity, activation), exact)


def test_importance_of_a_statistic_is_its_product_with_the_magnitude():
    score = importance_of_statistic(torch.tensor([[-2.0, 3.0]], dtype=torch.bfloat16), torch.tensor([[0.5, 1.0]]))
    assert score.dtype == torch.float32 and score.tolist() == [[1.0, 3.0]]
