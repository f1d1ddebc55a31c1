"""Methods that decide after training, inside `fit`: merged, scored again, exported, and merged again on a resume."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from dowser_pl.callbacks import Checkpoints, Dowser, Export, Forgetting, PatchFile, RandomState
from dowser_pl.callbacks.dowser import merging
from dowser_pl.cli.trainer import DowserTrainer
from dowser_pl.methods import FAPM, Dare, Full, Grafting, Layer, ModelTailor, Ties, Wise, build_masks
from dowser_pl.models.layers import find_blocks
from dowser_pl.models.loading import load_model
from dowser_pl.patches.patch import Patch
from dowser_pl.reporting import read_report
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

METHODS = {
    "dare": Dare(0.3),
    "grafting": Grafting(0.1),
    "fapm": FAPM(0.1),
    "ties": Ties(0.2),
    "wise": Wise(0.4),
    "model_tailor": ModelTailor(0.1),
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def fit(model_folder, folder, method, **options):
    trainer = build_trainer(folder, method, limit_val_batches=2, **{"max_epochs": 1, **options})
    module = build_module(model_folder, lr=2e-2)
    trainer.fit(module, datamodule=TinyData())
    return trainer, module, next(each for each in trainer.callbacks if isinstance(each, Dowser))


@pytest.fixture(scope="module")
def trained(model_folder, tmp_path_factory):
    """What training gives before any merge: the run of Full."""
    folder = tmp_path_factory.mktemp("full")
    _, module, _ = fit(model_folder, folder, Full())
    return module, read_report(folder)


def keep(inputs, name, module, given, output):
    inputs[name] = given[0]


def grams(module, layers):
    """Token by token in float64, over the batches of the first epoch."""
    data = TinyData()
    data.processor = module.processor
    data.setup("fit")
    sums, count = dict.fromkeys(layers, 0.0), 0
    for rows in data.calibration_dataloader():
        rows.pop("ids")
        inputs: dict[str, torch.Tensor] = {}
        handles = [layer.register_forward_hook(partial(keep, inputs, name)) for name, layer in layers.items()]
        with torch.no_grad():
            module.network.eval()(**rows)
        for handle in handles:
            handle.remove()
        real = rows["attention_mask"].bool()
        count += int(real.sum())
        for name, value in inputs.items():
            tokens = value[real].double()
            sums[name] = sums[name] + tokens.T @ tokens
    return {name: (total / count).float() for name, total in sums.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_final_model_is_what_the_method_makes_of_the_trained_one(model_folder, tmp_path, trained, name):
    method, (tuned, report_of_tuned) = METHODS[name], trained
    _, module, dowser = fit(model_folder, tmp_path, method, export=True)
    base, layers = load_model(str(model_folder), dtype="float32"), tuned.tuned_layers()
    measured = grams(tuned, layers) if name == "model_tailor" else {}

    def layer_of(matrix):
        weight = base.get_submodule(matrix).weight.detach()
        return Layer(matrix, weight, tuned=layers[matrix].weight.detach(), input_gram=measured.get(matrix))

    masks = dict(build_masks(method, find_blocks(tuned.network, layers), layer_of))
    frozen = changed = 0
    for matrix, layer in module.tuned_layers().items():
        mask, weight = dowser.entries.masks[matrix], layer.weight.detach()
        assert (mask != masks[matrix]).float().mean() < (0.02 if measured else 1e-9)
        original = base.get_submodule(matrix).weight.detach()
        assert torch.equal(weight[~mask], original[~mask])
        if not measured:
            assert torch.equal(weight, method.merge(layer_of(matrix), masks[matrix]))
        frozen += int((~mask).sum())
        changed += int((weight != original).sum())
    if measured:
        moved = {n: layer.weight - base.get_submodule(n).weight for n, layer in module.tuned_layers().items()}
        wanted = {n: method.merge(layer_of(n), masks[n]) - base.get_submodule(n).weight for n in moved}
        errors = sum(float((moved[n] - wanted[n]).square().sum()) for n in moved)
        assert errors < 1e-3 * sum(float(each.square().sum()) for each in wanted.values())
    report = read_report(tmp_path)
    assert report.frozen.entries == frozen and report.frozen.changed == 0
    assert report.trainable.changed == changed > 0
    assert report.frozen_digest["before"] == report.frozen_digest["after"]
    assert report.diagnostics["tuned_downstream"] == report_of_tuned.downstream.after
    assert report.diagnostics["tuned_upstream"] == report_of_tuned.upstream.after
    check_scores_and_files(model_folder, tmp_path, report, method)


def check_scores_and_files(model_folder, folder, report, method):
    """The report and the files are of the merged model."""
    exported = build_module(folder / "model")
    trainer = build_trainer(folder / "again", limit_val_batches=2)
    trainer.validate(exported, datamodule=TinyData(), verbose=False)
    assert exported.scores == {name: task.after for name, task in report.tasks.items()}
    if method.update_ratio > 0.5:
        assert not (folder / "patch.safetensors").exists()
        return
    base, merged = load_file(model_folder / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    with Patch.open(folder / "patch.safetensors") as patch:
        for key in patch.names:
            change = patch.change(key)
            bits = torch.arange(8, dtype=torch.uint8)
            mask = ((change.mask[:, None] >> bits) & 1).flatten()[: base[key].numel()].bool()
            base[key].view(-1)[mask] = change.values
    assert all(torch.equal(base[key], merged[key]) for key in merged)


def result(folder):
    report = json.loads((folder / "report.json").read_text())
    for key in ("seconds", "peak_memory_bytes", "run"):
        report.pop(key)
    return report, load_file(folder / "model" / "model.safetensors")


def run(model_folder, folder, method, ckpt_path=None, update="compact", checkpoint="compact", **options):
    """6 steps an epoch; a checkpoint at step 3, or also when training ends, after the merge."""
    every = 3
    dowser = Dowser(method, cache_dir=None, update=update, checkpoint=checkpoint, drift=False)
    trainer = DowserTrainer(
        callbacks=[
            dowser,
            Export(),
            Forgetting(None),
            PatchFile(),
            Checkpoints(str(folder / "checkpoints"), every),
            RandomState(),
        ],
        default_root_dir=folder,
        num_sanity_val_steps=-1,
        limit_val_batches=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(build_module(model_folder, lr=2e-2), datamodule=TinyData(), ckpt_path=ckpt_path)


STEPS = {"max_epochs": -1, "max_steps": 4}
RESUMED = {
    "after the merge": ("model_tailor", STEPS),
    "before the merge": ("model_tailor", {"max_epochs": 1}),
    "after the merge, full": ("dare", {**STEPS, "checkpoint": "full"}),
    "after the merge, dense": ("dare", {**STEPS, "update": "dense"}),
    "after the merge, dense, full": ("dare", {**STEPS, "update": "dense", "checkpoint": "full"}),
    "after the merge, half": ("dare", {**STEPS, "precision": "bf16-true", "checkpoint": "full"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_resumed_at_its_end_merges_again(model_folder, tmp_path, name):
    method, options = RESUMED[name]
    run(model_folder, tmp_path / "whole", METHODS[method], **options)
    last = tmp_path / "whole" / "checkpoints" / "last.ckpt"
    run(model_folder, tmp_path / "again", METHODS[method], last, **options)
    whole, again = result(tmp_path / "whole"), result(tmp_path / "again")
    assert again[0] == whole[0]
    assert all(torch.equal(again[1][key], value) for key, value in whole[1].items())


@pytest.mark.slow
def test_inputs_measured_a_few_layers_at_a_time_are_the_same(model_folder, tmp_path, monkeypatch):
    """What is merged first must not feed what is measured next."""
    _, together, _ = fit(model_folder, tmp_path / "together", ModelTailor(0.1))
    monkeypatch.setattr(merging, "GRAM_BYTES", 1)
    _, apart, _ = fit(model_folder, tmp_path / "apart", ModelTailor(0.1))
    weights = apart.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in together.network.state_dict().items())


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision_keeps_the_bits_of_the_base(model_folder, tmp_path, precision):
    _, module, dowser = fit(model_folder, tmp_path, ModelTailor(0.1), precision=precision)
    base = load_model(str(model_folder), dtype="float32").to(module.network.dtype)
    for name, layer in module.tuned_layers().items():
        mask = dowser.entries.masks[name]
        assert torch.equal(layer.weight[~mask], base.get_submodule(name).weight[~mask])
    assert dowser.counts[0].changed == 0 and dowser.counts[1].changed > 0


def test_a_merged_model_is_not_fitted_again(model_folder, tmp_path):
    trainer, module, _ = fit(model_folder, tmp_path, Grafting(0.1))
    trainer.fit_loop.max_epochs = 2
    with pytest.raises(ValueError, match="tuned by an earlier fit"):
        trainer.fit(module, datamodule=TinyData())


def test_no_batches_to_measure_on_are_refused():
    with pytest.raises(ValueError, match="0 calibration_batches, expected at least 1"):
        Dowser(ModelTailor(), calibration_batches=0)
