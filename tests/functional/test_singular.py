"""Leading singular directions against numpy, and the triples that moves between their projections leave alone."""

import numpy as np
import pytest
import torch

from dowser_pl.functional import singular
from dowser_pl.functional.null_space import Directions, projected
from dowser_pl.functional.singular import singular_directions

SHAPES = [(40, 30), (30, 40), (25, 25)]


def matrix(shape, seed=0):
    """Singular values that fall like those of trained matrices."""
    generator = torch.Generator().manual_seed(seed)
    left, values, right = torch.linalg.svd(torch.randn(shape, generator=generator).double(), full_matrices=False)
    return (left * (10.0 / (1 + torch.arange(len(values)).double()))) @ right


def projector(vectors):
    return vectors @ vectors.T


@pytest.mark.parametrize("small", [1024, 4], ids=["all", "iterated"])
@pytest.mark.parametrize("shape", SHAPES)
def test_directions_are_those_of_numpy(shape, small, monkeypatch):
    monkeypatch.setattr(singular, "_SMALL", small)
    monkeypatch.setattr(singular, "_MORE", 6)
    weight = matrix(shape)
    left, right = singular_directions(weight.float(), 5)
    outer, values, inner = np.linalg.svd(weight.numpy())
    for found, expected in ((left, outer[:, :5]), (right, inner[:5].T)):
        assert found.vectors.dtype == torch.float32 and found.shares.tolist() == [1.0] * 5
        torch.testing.assert_close(
            projector(found.vectors.double()), projector(torch.from_numpy(expected)), rtol=0, atol=2e-6
        )
    found = left.vectors.double().T @ weight @ right.vectors.double()
    torch.testing.assert_close(found, torch.from_numpy(values[:5]).diag(), rtol=0, atol=1e-4)
    assert left.left and not right.left
    again = singular_directions(weight.float(), 5)
    assert torch.equal(again[0].vectors, left.vectors) and torch.equal(again[1].vectors, right.vectors)


def test_projections_from_the_left_by_hand():
    """Half of the first output is taken out, all of the third."""
    axes = torch.eye(3)[:, [2, 0]]
    move = torch.tensor([[2.0, 4.0], [1.0, 1.0], [3.0, 5.0]])
    kept = projected(move, Directions(axes, torch.tensor([1.0, 0.5]), left=True))
    assert kept.tolist() == [[1.0, 2.0], [1.0, 1.0], [0.0, 0.0]]
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(9, 4, generator=generator))[0]
    shares, move = torch.rand(4, generator=generator), torch.randn(9, 5, generator=generator)
    expected = projected(move.T, Directions(vectors, shares)).T
    torch.testing.assert_close(projected(move, Directions(vectors, shares, left=True)), expected)


@pytest.mark.parametrize("small", [1024, 4], ids=["all", "iterated"])
@pytest.mark.parametrize("shape", SHAPES)
def test_triples_stay_triples_whatever_moves_between_the_projections(shape, small, monkeypatch):
    """A move ten times as large as the matrix, which would have changed all of them; the oracle is numpy's SVD."""
    monkeypatch.setattr(singular, "_SMALL", small)
    weight = matrix(shape)
    left, right = singular_directions(weight, 4)
    move = 30 * torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
    tuned = weight + projected(projected(move, left), right)
    outer, values, inner = np.linalg.svd(weight.numpy())
    for k in range(4):
        u, s, v = outer[:, k], values[k], inner[k]
        assert np.abs(tuned.numpy() @ v - s * u).max() < 1e-3 and np.abs(tuned.numpy().T @ u - s * v).max() < 1e-3
        assert np.abs(np.linalg.svd(tuned.numpy())[1] - s).min() < 1e-4
        assert np.abs((weight + move).numpy() @ v - s * u).max() > 1


@pytest.mark.parametrize("rank", [0, 6, 7])
def test_a_rank_that_leaves_nothing_to_move_is_refused(rank):
    with pytest.raises(ValueError, match=rf"got {rank} singular directions .*shape \(8, 6\).* fewer than its 6"):
        singular_directions(torch.ones(8, 6), rank)
    with pytest.raises(ValueError, match="not finite"):
        singular_directions(torch.full((8, 6), float("inf")), 1)
