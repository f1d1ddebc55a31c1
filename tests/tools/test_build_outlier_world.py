"""The outlier twin: the same function, other weights."""

import pytest
import torch

import build_outlier_world
from dowser_pl.functional.masks import jaccard
from dowser_pl.functional.selection import lowest
from dowser_pl.models import load_model, load_processor
from dowser_pl.models.layers import TARGETS, find_layers


def test_the_twin_answers_alike_with_heavy_tails(tmp_path, capsys):
    build_outlier_world.main(["--out", str(tmp_path / "twin"), "--seed", "3"])
    assert str(tmp_path / "twin") in capsys.readouterr().out
    world, twin = (load_model(path, dtype="float32") for path in ("embedded:world", str(tmp_path / "twin")))
    processor = load_processor(str(tmp_path / "twin"))
    inputs = dict(processor(text=["user : what is two plus three ? assistant :"], return_tensors="pt"))
    with torch.no_grad():
        logits, others = (model(**inputs).logits for model in (world, twin))
    assert logits.std() > 1
    torch.testing.assert_close(others, logits, atol=1e-3, rtol=1e-4)

    layers, others = (find_layers(model, None, TARGETS) for model in (world, twin))
    overlaps, tails = [], []
    for name, layer in layers.items():
        weight, other = layer.weight.detach(), others[name].weight.detach()
        count = weight.numel() // 10
        overlaps.append(jaccard(lowest(weight.abs(), count), lowest(other.abs(), count)))
        tails.append(kurtosis(other) / kurtosis(weight))
    assert max(overlaps) < 0.7  # other weights are the smallest ones now
    assert min(tails) > 2


@pytest.mark.slow
def test_a_seed_gives_its_twin_and_no_spread_the_world(tmp_path):
    def weights(*options: str) -> torch.Tensor:
        build_outlier_world.main(["--out", str(tmp_path / "twin"), *options])
        return load_model(str(tmp_path / "twin"), dtype="float32").model.language_model.layers[2].mlp.up_proj.weight

    world = load_model("embedded:world", dtype="float32").model.language_model.layers[2].mlp.up_proj.weight
    assert torch.equal(weights("--spread", "0"), world)
    one, two, other = weights("--seed", "1"), weights("--seed", "1"), weights("--seed", "2")
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_shared_values_are_refused():
    model = load_model("embedded:world", dtype="float32")
    attention = model.model.language_model.layers[0].self_attn
    attention.v_proj.weight = torch.nn.Parameter(attention.v_proj.weight[:64])
    with pytest.raises(ValueError, match="expected a decoder with values of its own for each head"):
        build_outlier_world.rescale(model, 0)


def kurtosis(weight: torch.Tensor) -> float:
    centred = weight - weight.mean()
    return float(centred.pow(4).mean() / centred.square().mean().square())
