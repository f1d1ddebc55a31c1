import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dowser_pl.importance import FACTORS, Factors, Probe, fingerprint, load_factors, read_head, save_factors
from dowser_pl.methods import ModelDowser

IDENTITY = {"weights": "abc", "probe": Probe().identity(), "precision": "32-true"}
NAMES = ("layers.0.q_proj", "layers.0.k_proj", "layers.1.q_proj")


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(0)
    layers = {
        name: {
            statistic: torch.rand(4, width, generator=generator)
            for statistic, width in zip(FACTORS, (5, 3, 3), strict=True)
        }
        for name in NAMES
    }
    layers[NAMES[1]]["activation"] = layers[NAMES[0]]["activation"]  # they read the same input
    return Factors(layers, num_prompts=4)


def test_round_trip_is_exact_and_shared_activations_lie_there_once(factors, tmp_path):
    path = tmp_path / "deep" / "cache.safetensors"
    save_factors(factors, path, IDENTITY, {"agreement": 0.9})
    loaded = load_factors(path, IDENTITY, NAMES, FACTORS)
    for name, layer in factors.layers.items():
        for statistic, value in layer.items():
            assert torch.equal(loaded.layers[name][statistic], value)
    assert (loaded.num_prompts, loaded.prompts_per_row) == (4, 1)
    assert loaded.layers[NAMES[0]]["activation"] is loaded.layers[NAMES[1]]["activation"]
    assert [p.name for p in path.parent.iterdir()] == ["cache.safetensors"]
    with safe_open(path, framework="pt") as file:
        assert len(file.keys()) == 8
    notes = read_head(path)
    assert notes["identity"] == IDENTITY and notes["notes"] == {"agreement": 0.9}
    assert set(notes["versions"]) == {"dowser_pl", "torch", "transformers"}
    save_factors(loaded, tmp_path / "again.safetensors", IDENTITY, {"agreement": 0.9})
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "def"}, r"\(weights: got 'abc', expected 'def'\)"),
        ({"precision": "bf16-true"}, "precision: got '32-true', expected 'bf16-true'"),
        ({"probe": Probe(seed=1).identity()}, r"\(probe.seed: got 0, expected 1\)"),
    ],
)
def test_a_foreign_cache_is_refused_and_says_what_differs(factors, tmp_path, change, message):
    save_factors(factors, tmp_path / "c.safetensors", IDENTITY)
    with pytest.raises(ValueError, match=message):
        load_factors(tmp_path / "c.safetensors", {**IDENTITY, **change}, NAMES, FACTORS)


def test_a_cache_without_what_is_needed_is_refused(factors, tmp_path):
    save_factors(factors, tmp_path / "c.safetensors", IDENTITY)
    with pytest.raises(
        ValueError, match="lacks 1 of the 2 factors that are needed, first 'layers.2.q_proj.activation'"
    ):
        load_factors(tmp_path / "c.safetensors", IDENTITY, [NAMES[0], "layers.2.q_proj"], ["activation"])
    with pytest.raises(ValueError, match="lacks 1 of the 1 .* 'layers.0.q_proj.weight_square'"):
        load_factors(tmp_path / "c.safetensors", IDENTITY, NAMES[:1], ["weight_square"])


def test_a_bit_of_what_is_not_needed_counts_as_well(factors, tmp_path):
    path = tmp_path / "c.safetensors"
    save_factors(factors, path, IDENTITY)
    needed = {"names": NAMES[:1], "statistics": ["activation"]}
    load_factors(path, IDENTITY, **needed)
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"damaged \(layers\.1\.q_proj\.\w+ has digest .*delete it to probe again"):
        load_factors(path, IDENTITY, **needed)


@pytest.mark.parametrize("keep", [0, 7, 200])
def test_a_torn_file_is_refused(factors, tmp_path, keep):
    path = tmp_path / "c.safetensors"
    save_factors(factors, path, IDENTITY)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="not a readable importance cache.*delete it"):
        load_factors(path, IDENTITY, NAMES, FACTORS)
    with pytest.raises(ValueError, match="not a readable importance cache.*delete it"):
        read_head(path)


def test_another_safetensors_file_is_no_importance(tmp_path):
    torch_file = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, torch_file)
    with pytest.raises(ValueError, match=r"holds no importance, .* \(format None, expected"):
        load_factors(torch_file, IDENTITY, NAMES, FACTORS)
    with pytest.raises(ValueError, match="there is no importance file .*nowhere.safetensors"):
        load_factors(tmp_path / "nowhere.safetensors", IDENTITY, NAMES, FACTORS)


def test_a_failed_write_leaves_the_old_file(factors, tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    save_factors(factors, path, IDENTITY)
    before = path.read_bytes()

    def dies(tensors, file, metadata):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("dowser_pl.importance.cache.save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        save_factors(factors, path, IDENTITY)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_factors_that_are_not_finite_are_refused(factors):
    factors.layers["layers.0.q_proj"]["abs_gradient"][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"abs gradient of layers.0.q_proj that is not finite"):
        factors.checked()


def test_how_many_prompts_and_where_they_run_is_no_part_of_the_identity():
    one, other = (
        Probe(batch_size=1, num_prompts=4, keep="all"),
        Probe(batch_size=64, num_prompts="auto", target_overlap=0.5),
    )
    assert one.identity() == other.identity()
    for change in ({"num_probes": 2}, {"positions": "all"}, {"noise_images": True}, {"num_tokens": 32}, {"seed": 1}):
        assert Probe(**change).identity() != Probe().identity()


def test_rows_of_prompts_and_groups(factors):
    grouped = factors.grouped(2)
    activation = factors.layers[NAMES[0]]["activation"]
    assert torch.equal(
        grouped.layers[NAMES[0]]["activation"], torch.stack([activation[:2].mean(0), activation[2:].mean(0)])
    )
    assert grouped.layers[NAMES[0]]["activation"] is grouped.layers[NAMES[1]]["activation"]
    assert (grouped.num_prompts, grouped.prompts_per_row) == (4, 2)
    assert grouped.first(3).num_prompts == 2, "a group is whole or absent"
    assert factors.grouped(3).first(4).num_prompts == 4, "all there are may end with a smaller group"
    again = factors.first(2).followed_by(
        Factors({name: {s: value[2:] for s, value in layer.items()} for name, layer in factors.layers.items()}, 2)
    )
    assert torch.equal(again.layers[NAMES[2]]["square_gradient"], factors.layers[NAMES[2]]["square_gradient"])
    with pytest.raises(ValueError, match="rows of 2 prompts cannot be made rows of 4"):
        grouped.grouped(4)


def test_the_file_of_a_7b_model_is_under_a_twentieth_of_its_weights(tmp_path):
    """One of 32 equal decoder layers of LLaVA-1.5-7B (bfloat16) at the default budget and estimator."""
    hidden, mlp, rows = 4096, 11008, Probe().num_prompts // ModelDowser().prompts_per_row
    attention, between, after = (torch.rand(rows, hidden) for _ in range(3))
    shapes = dict.fromkeys(("q", "k", "v"), (hidden, attention)) | {"o": (hidden, between)}
    shapes |= {"gate": (mlp, after), "up": (mlp, after), "down": (hidden, torch.rand(rows, mlp))}
    layers = {
        name: {"activation": activation, "abs_gradient": torch.rand(rows, outputs)}
        for name, (outputs, activation) in shapes.items()
    }
    save_factors(Factors(layers, 128, 4), tmp_path / "layer.safetensors", IDENTITY)
    weights = 2 * (4 * hidden * hidden + 3 * hidden * mlp)
    size = (tmp_path / "layer.safetensors").stat().st_size
    assert size < weights / 20  # 1/48: 270 MB for the whole model


def test_fingerprint_sees_every_bit_and_the_dtype():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    first = fingerprint(model)
    assert first == fingerprint(model) and len(first) == 64
    model[0].weight.data[1, 1] += 1e-6
    second = fingerprint(model)
    model[1].running_mean[0] += 1
    third = fingerprint(model)
    assert len({first, second, third, fingerprint(model.bfloat16())}) == 4
