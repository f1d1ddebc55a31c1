"""Importance and masks of a script: what `fit` measures and chooses, bit for bit."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from dowser_pl.callbacks import Dowser
from dowser_pl.errors import DowserError, MissingFileError
from dowser_pl.functional.masks import PackedMasks
from dowser_pl.integrations import Importance, Masks, Protectable, choose_masks, measure_importance
from dowser_pl.methods import Lora, Magnitude, ModelDowser, NullSpace, WandaLike
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import SMALL_PROBE, TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForImageTextToText.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def importance(model, processor):
    return measure_importance(model, processor, probe=SMALL_PROBE)


def masks_of_fit(tmp_path, folder, method):
    trainer = build_trainer(tmp_path, method, max_epochs=1)
    trainer.fit(build_module(folder), datamodule=TinyData())
    (dowser,) = (each for each in trainer.callbacks if isinstance(each, Dowser))
    return dict(dowser.entries.masks)


@pytest.mark.slow
@pytest.mark.parametrize("method", [ModelDowser(0.1), ModelDowser(0.3, scope="model"), WandaLike(0.2), Magnitude(0.1)])
def test_masks_are_those_of_fit(tmp_path, folder, model, processor, method):
    importance = measure_importance(model, processor, probe=SMALL_PROBE, method=method)
    expected, found = masks_of_fit(tmp_path, folder, method), choose_masks(importance, method)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sum(trained for trained, _ in found.counts.values()) == sum(int(mask.sum()) for mask in expected.values())


@pytest.mark.slow
def test_the_cache_is_that_of_fit(tmp_path, folder, model, processor):
    trainer = build_trainer(tmp_path / "run", ModelDowser(0.1), cache_dir=tmp_path / "cache", max_epochs=1)
    trainer.fit(build_module(folder), datamodule=TinyData())
    known = measure_importance(model, processor, probe=SMALL_PROBE, cache_dir=tmp_path / "cache")
    assert known.seconds == {} and known.path is not None and known.path.parent == tmp_path / "cache"


def test_the_model_is_left_as_it_was(folder, processor):
    model = AutoModelForImageTextToText.from_pretrained(folder).train()
    model.lm_head.weight.requires_grad_(False)
    model.model.vision_tower.eval()
    before = {name: (each.clone(), each.requires_grad) for name, each in model.named_parameters()}
    measure_importance(model, processor, probe=SMALL_PROBE)
    assert model.training and not any(part.training for part in model.model.vision_tower.modules())
    for name, each in model.named_parameters():
        weight, needed = before[name]
        assert torch.equal(each, weight) and each.requires_grad == needed and each.grad is None


def test_scores_order_the_masks(importance):
    masks = choose_masks(importance, ModelDowser(0.25))
    for name, mask in masks.items():
        scores = importance.scores(name)
        assert scores.shape == mask.shape and scores[mask].max() <= scores[~mask].min()
    with pytest.raises(DowserError, match=r"got 'lm_head', expected one of: model\.language_model"):
        importance.scores("lm_head")


@pytest.mark.slow
def test_importance_survives_a_file_and_fit_reads_it(tmp_path, folder, model, importance):
    importance.save(tmp_path / "importance.safetensors")
    again = Importance.load(tmp_path / "importance.safetensors", AutoModelForImageTextToText.from_pretrained(folder))
    assert again.agreement == importance.agreement and again.seconds == {}
    masks = choose_masks(importance, ModelDowser(0.1))
    for name, mask in choose_masks(again, ModelDowser(0.1)).items():
        assert torch.equal(mask, masks[name]) and torch.equal(again.scores(name), importance.scores(name))
    again.save(tmp_path / "copy.safetensors")
    assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / "importance.safetensors").read_bytes()
    trainer = build_trainer(tmp_path / "run", ModelDowser(0.1), max_epochs=1)
    (dowser,) = (each for each in trainer.callbacks if isinstance(each, Dowser))
    dowser.factors_file = tmp_path / "copy.safetensors"
    trainer.fit(build_module(folder), datamodule=TinyData())
    assert all(torch.equal(mask, masks[name]) for name, mask in dowser.entries.masks.items())


def test_a_file_of_the_cache_is_importance_too(tmp_path, model, processor, importance):
    measured = measure_importance(model, processor, probe=SMALL_PROBE, cache_dir=tmp_path)
    again = Importance.load(measured.path, model)
    assert all(torch.equal(again.scores(name), importance.scores(name)) for name in importance.factors.layers)
    with pytest.raises(DowserError, match="lacks"):
        few = measure_importance(model, processor, probe=SMALL_PROBE, targets=["q_proj"])
        few.save(tmp_path / "few")
        Importance.load(tmp_path / "few", model)
    assert set(choose_masks(Importance.load(tmp_path / "few", Protectable(model, targets=["q_proj"])))) < set(
        importance.digests
    )


def test_importance_of_another_model_is_refused(tmp_path, folder, importance):
    importance.save(tmp_path / "i")
    other = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        other.lm_head.weight += 1
    with pytest.raises(DowserError, match="holds the importance of another model .*weights: got"):
        Importance.load(tmp_path / "i", other)
    with pytest.raises(DowserError, match="there is no importance file"):
        Importance.load(tmp_path / "none", other)
    (tmp_path / "i").write_bytes((tmp_path / "i").read_bytes()[:-9])
    with pytest.raises(DowserError, match="is not a readable importance cache"):
        Importance.load(tmp_path / "i", other)


@pytest.mark.slow
def test_importance_of_rows_survives_a_file(tmp_path, model, processor):
    probe = replace(SMALL_PROBE, inputs="rows")
    measured = measure_importance(model, processor, probe=probe)
    measured.save(tmp_path / "rows")
    again = choose_masks(Importance.load(tmp_path / "rows", model))
    assert all(torch.equal(again[name], mask) for name, mask in choose_masks(measured).items())


def test_importance_of_nothing_is_not_kept(tmp_path, model, processor):
    with pytest.raises(DowserError, match=r"nothing was measured, .*Fix: Masks\.save"):
        measure_importance(model, processor, method=Magnitude(0.1)).save(tmp_path / "none")


def test_importance_is_drawn(tmp_path, importance):
    importance.plot(tmp_path / "matters.png")
    assert (tmp_path / "matters.png").stat().st_size > 10_000
    with pytest.raises(DowserError, match="expected a name that ends in"):
        importance.plot(tmp_path / "matters.jpg")
    with pytest.raises(DowserError, match="WandaLike asks for means of 1"):
        importance.plot(tmp_path / "matters.png", WandaLike(0.1))


def test_masks_survive_a_file(tmp_path, importance):
    masks = choose_masks(importance, ModelDowser(0.1))
    masks.save(tmp_path / "masks.safetensors")
    again = Masks.load(tmp_path / "masks.safetensors")
    assert set(again) == set(masks)
    assert all(torch.equal(again[name], masks[name]) for name in masks) and again.method == masks.method
    save_file({"a": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(DowserError, match="a holds no bools"):
        Masks.load(tmp_path / "other.safetensors")
    with pytest.raises(MissingFileError, match="there is no file"):
        Masks.load(tmp_path / "none.safetensors")


@pytest.mark.slow
def test_half_precision_under_autocast_is_that_of_fit(tmp_path, folder, model, processor):
    trainer = build_trainer(tmp_path / "run", ModelDowser(0.1), precision="bf16-mixed", max_epochs=1)
    trainer.fit(build_module(folder), datamodule=TinyData())
    (dowser,) = (each for each in trainer.callbacks if isinstance(each, Dowser))
    found = choose_masks(measure_importance(model, processor, probe=SMALL_PROBE, autocast=torch.bfloat16))
    assert all(torch.equal(found[name], mask) for name, mask in dowser.entries.masks.items())


def test_what_was_not_measured_is_asked_for(model, processor, importance):
    only = measure_importance(model, processor, probe=SMALL_PROBE, method=WandaLike(0.1))
    with pytest.raises(DowserError, match="ModelDowser asks for .*gradient.*Fix: measure_importance"):
        choose_masks(only, ModelDowser(0.1))
    with pytest.raises(DowserError, match="WandaLike asks for means of 1, got means of 4 prompts, .*Fix: measure_"):
        choose_masks(importance, WandaLike(0.1))
    assert choose_masks(importance, Magnitude(0.1)).counts == choose_masks(only, Magnitude(0.1)).counts  # needs nothing


def test_weights_that_were_trained_meanwhile_are_refused(folder, processor):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    measured = measure_importance(model, processor, probe=SMALL_PROBE)
    masks = choose_masks(measured)
    name = next(iter(masks))
    with torch.no_grad():
        model.get_submodule(name).weight[0, 0] += 1
    for ask in (lambda: choose_masks(measured), lambda: measured.scores(name)):
        with pytest.raises(DowserError, match="are not those that were measured .*Fix: load the model again"):
            ask()


@pytest.mark.parametrize("method", [Lora(), NullSpace(), ModelDowser])
def test_methods_that_do_not_choose_before_training_are_refused(model, processor, importance, method):
    for ask in (lambda: choose_masks(importance, method), lambda: measure_importance(model, processor, method=method)):
        with pytest.raises(DowserError, match="expected a method that chooses entries before training"):
            ask()


def test_a_damaged_file_is_told(tmp_path, importance):
    path = tmp_path / "masks.safetensors"
    choose_masks(importance).save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DowserError, match="is damaged"):
        Masks.load(path)
    save_file({}, path)
    with pytest.raises(DowserError, match="nothing is in it"):
        Masks.load(path)


def test_precisions_that_there_are_not_are_told(model, processor):
    with pytest.raises(DowserError, match="got autocast torch.float32, expected"):
        measure_importance(model, processor, probe=SMALL_PROBE, autocast=torch.float32)


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def test_what_cannot_be_measured_is_refused(model, processor):
    with pytest.raises(DowserError, match=r"got Wrapped, expected a Hugging Face model .*give its \.module"):
        Protectable(Wrapped(model), processor)
    with pytest.raises(DowserError, match="got Linear, expected a Hugging Face model"):
        Protectable(nn.Linear(2, 2), processor)
    with pytest.raises(DowserError, match="got no processor"):
        measure_importance(model, None)


def test_settings_reach_the_layers(model, processor):
    few = measure_importance(
        model, processor, probe=replace(SMALL_PROBE, num_prompts=2), targets=["q_proj"], last_n_layers=1
    )
    assert [name.rpartition(".")[2] for name in choose_masks(few)] == ["q_proj"]


def test_masks_of_any_origin_can_be_kept():
    masks = Masks(PackedMasks.of([("a", torch.tensor([[True, False]]))]))
    assert masks.counts == {"a": (1, 2)} and masks.method is None


def test_a_cache_that_cannot_be_written_is_known_before_anything_is_measured(tmp_path, model, processor, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("dowser_pl.callbacks.dowser.masks.MaskBuilder.measure", lambda self: pytest.fail("measured"))
    with pytest.raises(OSError, match=r"cannot write into .*got cache_dir .*Fix: set cache_dir to another folder"):
        measure_importance(model, processor, probe=SMALL_PROBE, cache_dir=tmp_path / "file" / "cache")
