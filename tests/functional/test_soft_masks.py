import math

import pytest
import torch

from dowser_pl.functional.soft_masks import rescaled, soft_mask, standardised, within_matrix


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def test_by_hand():
    sizes = standardised(torch.tensor([[1.0, -2.0, 3.0]]))  # mean 2, deviation 1
    assert sizes[0].tolist() == pytest.approx([sigmoid(-1), 0.5, sigmoid(1)])
    mask = soft_mask(
        torch.tensor([[0.2, 0.5, 0.6], [0.1, 0.9, 0.4]]), torch.tensor([[0.6, 0.5, 0.2], [0.15, 1.0, 0.5]])
    )
    assert mask.flatten().tolist() == pytest.approx([0.75, 0, 0, 0.6, 1 / 1.9, 0.5 / 0.9])
    assert rescaled(torch.tensor([[0.5, 0.0], [1.0, 0.6]])).flatten().tolist() == pytest.approx([5 / 7, 0, 1, 6 / 7])


def test_matrices_that_nothing_can_be_said_of():
    assert not bool(standardised(torch.zeros(2, 3)).any())
    assert standardised(torch.tensor([[-3.0, 3.0]])).tolist() == [[0.5, 0.5]]
    assert not bool(rescaled(torch.zeros(2, 3)).any())
    assert within_matrix(torch.zeros(2, 2)).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_percentiles_by_hand_and_by_counting():
    assert within_matrix(torch.tensor([[3.0, 1.0], [2.0, 2.0]])).tolist() == [[0.875, 0.125], [0.5, 0.5]]
    scores = torch.randint(0, 30, (13, 9), generator=torch.Generator().manual_seed(0)).float()
    values = scores.flatten().tolist()
    expected = [(sum(v < s for v in values) + sum(v <= s for v in values)) / 2 / len(values) for s in values]
    assert within_matrix(scores).flatten().tolist() == pytest.approx(expected)
    assert float(within_matrix(scores).mean()) == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 300.0])
def test_a_mask_knows_sizes_only_relatively(scale):
    generator = torch.Generator().manual_seed(1)
    weight, gradient = torch.randn(2, 8, 9, generator=generator)
    mask = soft_mask(standardised(weight), standardised(gradient))
    scaled = soft_mask(standardised(weight * scale), standardised(gradient))
    torch.testing.assert_close(mask, scaled, rtol=1e-4, atol=1e-5)
    chosen = mask > 0
    assert 0 < int(chosen.sum()) < 72 and bool((mask[chosen] > 0.5).all())
    full = rescaled(mask)
    assert float(full.max()) == 1.0 and torch.equal(full > 0, chosen)
    assert bool((full[chosen] >= mask[chosen]).all()), "the mean of shares is below 1, so they grow"
