"""The low-rank form against the dense inverse in float64, and its limits."""

import math

import pytest
import torch

from dowser_pl.errors import DowserError
from dowser_pl.functional.null_space import Directions, directions_of, projected


def rows(count=40, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([10.0, 3.0, 1.0, 0.5, 0.1, 0.03, 0.01])[:width].double()
    mixed = torch.randn(width, width, generator=generator).double()
    return torch.randn(count, width, generator=generator).double() * scales @ mixed


def moment_of(inputs):
    return inputs.T @ inputs / len(inputs)


def move(width=7):
    return torch.randn(5, width, generator=torch.Generator().manual_seed(9)).double()


def dense(moment, eps):
    mean = torch.linalg.eigvalsh(moment).mean()
    return torch.linalg.inv(torch.eye(len(moment)).double() + moment / (eps * mean))


@pytest.mark.parametrize("eps", [0.01, 0.1, 3.0])
def test_full_rank_is_the_dense_inverse(eps):
    moment = moment_of(rows())
    torch.testing.assert_close(
        projected(move(), directions_of(moment, eps, None)), move() @ dense(moment, eps), rtol=1e-6, atol=1e-7
    )


def test_rank_takes_the_greatest_eigenvalues_and_the_mean_of_all():
    moment = moment_of(rows())
    values, vectors = torch.linalg.eigh(moment)
    expected = torch.eye(7).double()
    for index in (6, 5):
        share = values[index] / (values[index] + 0.1 * values.mean())
        expected -= share * torch.outer(vectors[:, index], vectors[:, index])
    directions = directions_of(moment, 0.1, 2)
    assert directions.vectors.shape == (7, 2)
    torch.testing.assert_close(projected(move(), directions), move() @ expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rank", [None, 1, 3, 100])
def test_symmetric_with_eigenvalues_above_0_up_to_1(rank):
    matrix = projected(torch.eye(7).double(), directions_of(moment_of(rows()), 0.1, rank))
    torch.testing.assert_close(matrix, matrix.T)
    values = torch.linalg.eigvalsh(matrix)
    assert values.min() > 0
    assert values.max() <= 1 + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinite_eps_gives_the_move_back_bit_for_bit(dtype):
    directions = directions_of(moment_of(rows()).to(dtype), math.inf, None)
    assert directions.vectors.shape == (7, 0)
    assert torch.equal(projected(move().to(dtype), directions), move().to(dtype))


def test_small_eps_keeps_the_outputs_on_the_rows():
    inputs = rows(count=3)  # fewer than there are inputs: something is left to move in
    kept = projected(move(), directions_of(moment_of(inputs), 1e-12, None))
    assert (inputs @ move().T).abs().max() > 1
    assert (inputs @ kept.T).abs().max() < 1e-5
    assert kept.norm() > 0.3 * move().norm()


def test_small_eps_is_the_orthogonal_projection():
    inputs = rows(count=3)
    onto = torch.eye(7).double() - torch.linalg.pinv(inputs) @ inputs
    kept = projected(move(), directions_of(moment_of(inputs), 1e-7, 3))
    torch.testing.assert_close(kept, move() @ onto, rtol=1e-4, atol=1e-4)


def test_shares_fall_and_are_float32():
    directions = directions_of(moment_of(rows()).float(), 0.1, None)
    assert directions.shares.dtype == torch.float32
    assert directions.shares.tolist() == sorted(directions.shares.tolist(), reverse=True)


def test_vectors_of_half_precision_are_taken_in_that_of_the_move():
    directions = directions_of(moment_of(rows()), 0.1, None)
    half = Directions(directions.vectors.bfloat16(), directions.shares)
    kept = projected(move().float(), half)
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept.double(), projected(move(), directions), rtol=0, atol=0.05)


@pytest.mark.parametrize(("eps", "rank"), [(0.0, None), (-1.0, None), (math.nan, None), (0.1, 0)])
def test_refuses_settings_out_of_range(eps, rank):
    with pytest.raises(DowserError, match="eps is|rank is"):
        directions_of(moment_of(rows()), eps, rank)


@pytest.mark.parametrize("moment", [torch.zeros(3, 3), torch.full((3, 3), math.nan), torch.full((3, 3), math.inf)])
def test_refuses_moments_that_say_nothing(moment):
    with pytest.raises(DowserError, match="trace"):
        directions_of(moment, 0.1, None)
