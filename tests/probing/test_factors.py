import pytest
import torch

from dowser_pl.probing import Factors, Probe, fingerprint, load_factors, save_factors
from dowser_pl.probing.factors import LayerFactors

IDENTITY = {"weights": "abc", "probe": Probe().identity(), "precision": "32-true"}


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(0)
    return Factors(
        {
            name: LayerFactors(*(torch.rand(4, width, generator=generator) for width in (5, 3, 3)))
            for name in ("layers.0.q_proj", "layers.1.q_proj")
        }
    )


def test_round_trip_is_exact(factors, tmp_path):
    path = tmp_path / "deep" / "cache.safetensors"
    save_factors(factors, path, IDENTITY)
    loaded = load_factors(path, IDENTITY, list(factors.layers))
    for name, layer in factors.layers.items():
        for field in ("activation", "abs_gradient", "square_gradient"):
            assert torch.equal(getattr(loaded.layers[name], field), getattr(layer, field))
    assert [p.name for p in path.parent.iterdir()] == ["cache.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "def"}, "weights: got 'abc', expected 'def'"),
        ({"precision": "bf16-true"}, "precision: got '32-true', expected 'bf16-true'"),
        ({"probe": Probe(seed=1).identity()}, "probe: got"),
    ],
)
def test_a_foreign_cache_is_refused_and_says_what_differs(factors, tmp_path, change, message):
    save_factors(factors, tmp_path / "c.safetensors", IDENTITY)
    with pytest.raises(ValueError, match=message):
        load_factors(tmp_path / "c.safetensors", {**IDENTITY, **change}, list(factors.layers))


def test_a_cache_without_a_needed_matrix_is_refused(factors, tmp_path):
    save_factors(factors, tmp_path / "c.safetensors", IDENTITY)
    with pytest.raises(ValueError, match="no factors of 1 tuned matrices, first 'layers.2.q_proj'"):
        load_factors(tmp_path / "c.safetensors", IDENTITY, ["layers.0.q_proj", "layers.2.q_proj"])


@pytest.mark.parametrize("keep", [0, 7, 200])
def test_a_torn_file_is_refused(factors, tmp_path, keep):
    path = tmp_path / "c.safetensors"
    save_factors(factors, path, IDENTITY)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="not a readable importance cache.*delete it"):
        load_factors(path, IDENTITY, list(factors.layers))


def test_factors_that_are_not_finite_are_refused(factors):
    factors.layers["layers.0.q_proj"].abs_gradient[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"abs gradient of layers.0.q_proj that is not finite"):
        factors.checked()


def test_compute_batch_is_no_part_of_the_identity():
    assert Probe(batch_size=1).identity() == Probe(batch_size=64).identity()
    assert Probe(num_probes=1).identity() != Probe(num_probes=2).identity()


def test_fingerprint_sees_every_bit_and_the_dtype():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    first = fingerprint(model)
    assert first == fingerprint(model) and len(first) == 64
    model[0].weight.data[1, 1] += 1e-6
    second = fingerprint(model)
    model[1].running_mean[0] += 1
    third = fingerprint(model)
    assert len({first, second, third, fingerprint(model.bfloat16())}) == 4
