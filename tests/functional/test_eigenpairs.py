"""The greatest eigenpairs without the others, against the exact decomposition in float64."""

import pytest
import torch

from dowser_pl.functional import eigenpairs
from dowser_pl.functional.eigenpairs import leading_eigenpairs
from dowser_pl.functional.null_space import directions_of, projected

INPUTS, RANK = 1056, 24
PLACES = torch.arange(1, INPUTS + 1).double()
FALLING = {
    "the first hold a sixth": PLACES**-0.5,
    "the first hold a half": PLACES**-1.05,
    "the first hold nearly all": PLACES**-2,
    "one holds nearly all": torch.cat([torch.tensor([300.0]).double(), PLACES[1:] ** -1.05]),
}
ENDING = {
    "a few inputs": torch.where(PLACES <= 10, 1 / PLACES, 0.0),
    "one input": torch.where(PLACES <= 1, 1 / PLACES, 0.0),
}
FLAT = {"all the same": torch.ones(INPUTS).double(), "nearly the same": 1 + 0.02 * PLACES.flip(0) / INPUTS}


@pytest.fixture(scope="module")
def vectors():
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(INPUTS, INPUTS, generator=generator).double()).Q


@pytest.fixture
def exact_is_not_asked(monkeypatch):
    """Of the moments themselves; what they are reduced to is far smaller."""
    plain = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda each: plain(each) if len(each) < INPUTS else pytest.fail("asked"))


def moment_of(vectors, values):
    return ((vectors * values) @ vectors.T).float()  # as it is summed


def shares_of(values, moment, eps=0.1):
    return values / (values + eps * moment.double().trace() / INPUTS)


@pytest.mark.parametrize("spectrum", [*FALLING, *ENDING, *FLAT])
def test_shares_are_right(vectors, spectrum, exact_is_not_asked):
    values = (FALLING | ENDING | FLAT)[spectrum]
    moment = moment_of(vectors, values)
    found, directions = leading_eigenpairs(moment, RANK)
    assert found.shape == (RANK,) and directions.shape == (INPUTS, RANK)
    assert found.dtype == directions.dtype == torch.float64 and bool((found >= 0).all())
    torch.testing.assert_close(shares_of(found, moment), shares_of(values[:RANK], moment), rtol=0, atol=1e-3)
    torch.testing.assert_close(directions.T @ directions, torch.eye(RANK).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("spectrum", [*FALLING, *ENDING])
def test_moves_are_changed_as_by_the_exact_directions(vectors, spectrum, exact_is_not_asked):
    values = (FALLING | ENDING)[spectrum]
    moment = moment_of(vectors, values)
    move = torch.randn(5, INPUTS, generator=torch.Generator().manual_seed(1)).double()
    shares, leading = shares_of(values[:RANK], moment), vectors[:, :RANK]
    for each in (move, move @ moment.double()):  # any, and one along what inputs are
        expected = each - ((each @ leading) * shares) @ leading.T
        found = projected(each, directions_of(moment, 0.1, RANK))
        assert (found - expected).norm() < 4e-3 * each.norm()


@pytest.mark.parametrize("spectrum", FLAT)
def test_each_direction_of_a_flat_spectrum_is_taken_out_as_by_all(vectors, spectrum, exact_is_not_asked):
    """Whichever of about equal ones they are: P of full rank, itself computed by its definition."""
    moment = moment_of(vectors, FLAT[spectrum])
    found, directions = leading_eigenpairs(moment, RANK)
    scale = 0.1 * moment.double().trace() / INPUTS
    whole = torch.linalg.inv(torch.eye(INPUTS).double() + moment.double() / scale)
    kept = directions * (1 - shares_of(found, moment))
    assert (whole @ directions - kept).norm(dim=0).max() < 4e-3


def test_the_same_bits_again(vectors):
    moment = moment_of(vectors, FALLING["the first hold a half"])
    first = leading_eigenpairs(moment, RANK)
    torch.manual_seed(5)  # nor does it draw from the stream that all share
    assert all(torch.equal(one, other) for one, other in zip(first, leading_eigenpairs(moment, RANK), strict=True))


@pytest.mark.parametrize("case", ["few columns", "all", "a few of few", "many of many"])
def test_what_it_does_not_tell_is_exact_bit_for_bit(vectors, monkeypatch, case):
    moment, count = moment_of(vectors, FALLING["the first hold a half"]), RANK
    if case == "few columns":
        monkeypatch.setattr(eigenpairs, "_NEAR", 0.0)
        monkeypatch.setattr(eigenpairs, "_ROUNDING", 0.0)
    elif case == "a few of few":
        moment = moment[:300, :300]
    else:
        count = None if case == "all" else INPUTS // 8
    values, whole = torch.linalg.eigh(moment.double())
    found = leading_eigenpairs(moment, count)
    assert torch.equal(found[0], values.flip(0)[:count].clamp(min=0))
    assert torch.equal(found[1], whole.flip(1)[:, :count])
