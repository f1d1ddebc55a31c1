"""The verb `drift`: models, patches, adapters and runs against their base, without data."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from dowser_pl.__main__ import main
from dowser_pl.methods import Lora, Magnitude
from dowser_pl.models.lora import LoraSettings
from tests.tiny_models import make_processor_folder, save_tiny_llava, tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

FEW = ["--per-source", "4"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("base"))


def fit(folder, base, method, **module):
    trainer = build_trainer(folder, method, export=True, max_epochs=1)
    trainer.fit(build_module(base, lr=3e-2, **module), datamodule=TinyData())
    return folder


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    return fit(tmp_path_factory.mktemp("run"), base, Magnitude(0.3))


def measured(tmp_path, base, *tuned, options=()):
    line = ["drift", str(base), *map(str, tuned), *FEW, *options, "--json", str(tmp_path / "drift.json")]
    assert main(line) == 0
    return json.loads((tmp_path / "drift.json").read_text())["drift"]


def test_a_model_is_at_no_distance_from_itself(base, tmp_path, capsys):
    (found,) = measured(tmp_path, base, base).values()
    assert found["kl"] == pytest.approx(0.0, abs=1e-6) and found["agreement"] == 1.0
    assert set(found["sources"]) == {"text", "chat", "turn", "noise"}
    assert f"{base}: KL " in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_its_model_and_its_patch_are_the_same(base, run, tmp_path):
    found = measured(tmp_path, base, run, run / "model", run / "patch.safetensors", base)
    of_run, of_model, of_patch, of_base = found.values()
    assert of_run == of_model and of_run["kl"] > 1e-4
    assert of_patch["kl"] == pytest.approx(of_model["kl"], rel=1e-4)
    assert of_base["kl"] == pytest.approx(0.0, abs=1e-6)  # the patch was taken off again


@pytest.mark.slow
def test_adapters_are_put_beside_the_base_and_taken_away(base, tmp_path):
    folder = fit(tmp_path / "lora", base, Lora(), lora=LoraSettings(r=4))
    merged, adapter, again = measured(tmp_path, base, folder / "model", folder / "adapter", base).values()
    assert adapter["kl"] == pytest.approx(merged["kl"], rel=1e-3) and merged["kl"] > 1e-5
    assert again["kl"] == pytest.approx(0.0, abs=1e-6)


def test_where_models_moved_is_told_and_drawn(base, run, tmp_path, capsys):
    picture = tmp_path / "moved.png"
    measured(tmp_path, base, run / "patch.safetensors", base, options=["--moved", str(picture)])
    moved, unmoved = json.loads((tmp_path / "drift.json").read_text())["moved"].values()
    before, after = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (base, run / "model"))
    for each in moved["matrices"]:
        old, new = (dict(model.named_parameters())[f"{each['name']}.weight"] for model in (before, after))
        assert each["size"] == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-5)
        assert each["share"] == (new != old).double().mean().item() > 0
    assert len(moved["matrices"]) == 21 and min(moved["drift"]) > 0
    assert {each["size"] for each in unmoved["matrices"]} == {0.0} == set(unmoved["drift"])
    assert picture.stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "moved most: " in said and f"{base}: no matrix of the decoder moved" in said


@pytest.mark.slow
def test_an_adapter_moves_what_its_merged_model_moves(base, tmp_path):
    folder = fit(tmp_path / "lora", base, Lora(), lora=LoraSettings(r=4))
    measured(tmp_path, base, folder / "model", folder / "adapter", options=["--moved", str(tmp_path / "moved.svg")])
    merged, adapter = json.loads((tmp_path / "drift.json").read_text())["moved"].values()
    for one, other in zip(merged["matrices"], adapter["matrices"], strict=True):
        assert one["name"] == other["name"] and other["size"] == pytest.approx(one["size"], rel=1e-3)
    assert adapter["drift"] == pytest.approx(merged["drift"], rel=1e-3)


def test_a_narrower_model_is_told_that_rounding_counts(tmp_path, capsys):
    base, tuned = (make_processor_folder(tmp_path / name) for name in ("base", "tuned"))
    tiny_llava().save_pretrained(base)
    tiny_llava().bfloat16().save_pretrained(tuned)
    measured(tmp_path, base, tuned)
    told = f"{tuned} is bfloat16 and {base} float32: what rounding changed counts as moved. --dtype bfloat16 leaves it"
    assert told in capsys.readouterr().out
    assert measured(tmp_path, base, tuned, options=["--dtype", "bfloat16"])[str(tuned)]["kl"] == 0.0
    assert "rounding" not in capsys.readouterr().out


def test_a_matrix_of_zeros_that_moved_moved_by_its_whole_size(tmp_path):
    base, tuned = (make_processor_folder(tmp_path / name) for name in ("base", "tuned"))
    network = tiny_llava()
    weight = network.model.language_model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight.zero_()
        network.save_pretrained(base)
        weight[0] = 1
        network.save_pretrained(tuned)
    measured(tmp_path, base, tuned, base, options=["--moved", str(tmp_path / "moved.svg")])
    moved, unmoved = json.loads((tmp_path / "drift.json").read_text())["moved"].values()
    sizes = {each["name"].rpartition("layers.")[2]: each["size"] for each in moved["matrices"]}
    assert sizes.pop("1.mlp.up_proj") == 1.0 and set(sizes.values()) == {0.0}
    assert {each["size"] for each in unmoved["matrices"]} == {0.0}


def test_a_picture_that_cannot_be_written_is_refused_first(base, capsys, monkeypatch):
    monkeypatch.setattr("dowser_pl.commands.drift_run.loaded", lambda *_: pytest.fail("loaded a model"))
    assert main(["drift", str(base), str(base), "--moved", "moved.jpg"]) == 1
    assert "expected a name that ends in .png" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_of_the_task_are_written_after(base, run, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (50, 40), (number * 80, 20, 90)).save(folder / f"{number}.png")
    (found,) = measured(tmp_path, base, run, options=["--pictures", str(folder)]).values()
    assert {"train", "shuffle", "mosaic"} <= set(found["sources"])


def test_what_cannot_be_compared_is_refused(base, run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text("{}")
    other = make_processor_folder(tmp_path / "other")
    tiny_llava(vocab_size=200).save_pretrained(other)
    for tuned, message in [(tmp_path / "run", "there is nothing to compare"), (other, "expected a tuned model of the")]:
        assert main(["drift", str(base), str(tuned), *FEW]) == 1
        assert message in capsys.readouterr().err
    assert main(["drift", str(base), str(run), *FEW, "--pictures", str(tmp_path / "empty")]) == 1
    assert "there are no pictures in" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--per-source", "--batch-size"])
def test_numbers_that_mean_nothing_are_refused(base, capsys, option):
    assert main(["drift", str(base), str(base), option, "0"]) == 1
    assert f"got {option[2:].replace('-', '_')} 0, expected at least 1" in capsys.readouterr().err


def test_a_path_that_leads_nowhere_is_told_before_the_base_is_loaded(base, capsys, monkeypatch):
    monkeypatch.setattr("dowser_pl.commands.drift_run.loaded", lambda *_: pytest.fail("loaded a model"))
    assert main(["drift", str(base), "runs/none"]) == 1
    assert "runs/none" in capsys.readouterr().err
