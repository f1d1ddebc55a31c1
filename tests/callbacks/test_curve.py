"""Updates taken back when training ends: the curve, the budget, and what a resume makes of them."""

import pytest
import torch
from safetensors.torch import load_file

from dowser_pl.callbacks import Curve, Dowser
from dowser_pl.methods import Full, Grafting, Magnitude, ModelDowser, Random, Spider
from dowser_pl.models.loading import load_model
from dowser_pl.patches.patch import Patch
from dowser_pl.reporting import read_report
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

RATIOS = [0.02, 0.05]
SCOPES = {"matrix": ModelDowser(0.1), "model": ModelDowser(0.1, scope="model"), "random": Random(0.1)}


class DataToChooseOn(TinyData):
    def questions_to_choose_on(self):
        return [task for task in self.evaluation_tasks() if task.role == "upstream"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def fit(model_folder, folder, method, curve=None, data=None, ckpt_path=None, lora=None, **options):
    callbacks = [] if curve is None else [curve]
    trainer = build_trainer(folder, method, callbacks, limit_val_batches=1, **{"max_epochs": 1, **options})
    module = build_module(model_folder, lr=2e-2)
    trainer.fit(module, datamodule=data or DataToChooseOn(), ckpt_path=ckpt_path)
    return module, next(each for each in trainer.callbacks if isinstance(each, Dowser))


def matrices(module):
    return {name: layer.weight.detach().clone() for name, layer in module.tuned_layers().items()}


def watch(monkeypatch, scores=()):
    """What the model holds whenever it is scored outside of the loops, and scores that are not its own."""
    seen, scores = [], iter(scores)

    def score_tasks(self, tasks, loaders):
        seen.append(matrices(self))
        score = next(scores, 0.5)
        return {task.name: score for task in tasks}

    monkeypatch.setattr("dowser_pl.module.evaluation.EvaluatedModule.score_tasks", score_tasks)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, update",
    [("matrix", "compact"), ("model", "dense"), pytest.param("random", "compact", marks=pytest.mark.slow)],
)
def test_every_point_is_the_tuned_model_inside_the_mask_of_its_ratio(model_folder, tmp_path, monkeypatch, name, update):
    method = SCOPES[name]
    plain, _ = fit(model_folder, tmp_path / "plain", method, update=update)
    seen = watch(monkeypatch)
    module, dowser = fit(model_folder, tmp_path / "curve", method, Curve([0.05, 0.02]), update=update)
    base = load_model(str(model_folder), dtype="float32")
    for ratio, held in zip(RATIOS, seen, strict=True):
        smaller = type(method)(ratio, **({"scope": method.scope} if name == "model" else {}))
        _, other = fit(model_folder, tmp_path / f"{ratio}", smaller, max_epochs=1, update=update)
        for layer, tuned in matrices(plain).items():
            expected = torch.where(other.entries.masks[layer], tuned, base.get_submodule(layer).weight)
            assert torch.equal(held[layer], expected), (ratio, layer)
    for layer, tuned in matrices(plain).items():  # all was put back
        assert torch.equal(matrices(module)[layer], tuned)
    report = read_report(tmp_path / "curve")
    assert [point.update_ratio for point in report.curve] == [0.0, *RATIOS, 0.1]
    assert report.curve[1].scores == {"colour": 0.5, "yesno": 0.5}
    assert report.budget is None
    assert dowser.counts[0].changed == 0
    assert report.frozen_digest == read_report(tmp_path / "plain").frozen_digest


def test_the_curve_scores_as_the_validation_loop_does(model_folder, tmp_path):
    """At the ratio next to the trained one in count, so that what remains is the trained model itself."""
    fit(model_folder, tmp_path / "run", Magnitude(0.1), Curve([0.0999999]))
    report = read_report(tmp_path / "run")
    assert report.curve[1].scores == report.curve[2].scores == {k: v.after for k, v in report.tasks.items()}
    assert report.curve[0].scores == {k: v.before for k, v in report.tasks.items()}


@pytest.mark.slow
def test_the_budget_keeps_the_largest_ratio_within_it(model_folder, tmp_path, monkeypatch):
    tuned, _ = fit(model_folder, tmp_path / "plain", ModelDowser(0.1))
    seen = watch(monkeypatch, [0.3, 0.4, 0.9, 0.8, 0.89])  # two points of the curve, the base, 0.1 and 0.05
    data = DataToChooseOn()
    module, _ = fit(model_folder, tmp_path / "run", ModelDowser(0.1), Curve(RATIOS, 0.02), data=data, export=True)
    base = {name: load_model(str(model_folder), dtype="float32").get_submodule(name).weight for name in matrices(tuned)}
    for name, weight in base.items():
        assert torch.equal(seen[2][name], weight)
        assert torch.equal(seen[3][name], matrices(tuned)[name])
        assert torch.equal(matrices(module)[name], seen[4][name])
        assert torch.equal(seen[4][name], seen[1][name])
    report = read_report(tmp_path / "run")
    assert (report.budget.update_ratio, report.budget.kept) == (0.05, True)
    assert report.budget.drops == {0.05: 0.01, 0.1: 0.1}
    assert report.frozen.changed == 0
    assert report.frozen.entries + report.trainable.entries == sum(weight.numel() for weight in base.values())
    assert report.trainable.entries == sum(round(0.05 * weight.numel()) for weight in base.values())
    assert report.frozen_digest["before"] == report.frozen_digest["after"]
    with Patch.open(tmp_path / "run" / "patch.safetensors") as patch:
        assert sum(map(patch.num_entries, patch.names)) == report.trainable.entries
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert any(torch.equal(tensor, matrices(module)[next(iter(base))]) for tensor in saved.values())


def test_no_ratio_within_the_budget_is_said_and_the_smallest_is_kept(model_folder, tmp_path, monkeypatch):
    watch(monkeypatch, [0.3, 0.4, 0.9, 0.5, 0.6, 0.7])
    with pytest.warns(UserWarning, match="of .0.02, 0.05, 0.1. keeps the budget: the smallest, 0.02, loses 0.200"):
        fit(model_folder, tmp_path, ModelDowser(0.1), Curve(RATIOS, 0.02))
    budget = read_report(tmp_path).budget
    assert (budget.update_ratio, budget.kept) == (0.02, False)
    assert budget.drops == {0.02: 0.2, 0.05: 0.3, 0.1: 0.4}


@pytest.mark.slow
def test_all_updates_stay_where_they_keep_the_budget(model_folder, tmp_path, monkeypatch):
    plain, _ = fit(model_folder, tmp_path / "plain", ModelDowser(0.1))
    watch(monkeypatch, [0.9, 0.95])
    module, _ = fit(model_folder, tmp_path / "run", ModelDowser(0.1), Curve(max_upstream_drop=0.0))
    assert all(torch.equal(matrices(module)[name], weight) for name, weight in matrices(plain).items())
    report = read_report(tmp_path / "run")
    assert report.curve == []  # a budget alone measures nothing on the data of the report
    assert (report.budget.update_ratio, report.budget.drops) == (0.1, {0.1: -0.05})


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["compact", "full"])
def test_a_run_resumed_at_its_end_takes_the_same_updates_back(model_folder, tmp_path, monkeypatch, checkpoint):
    scores = [0.9, 0.8, 0.89]
    watch(monkeypatch, scores)
    options = {"checkpoint": checkpoint, "method": ModelDowser(0.1)}
    module, _ = fit(model_folder, tmp_path, curve=Curve([], 0.02), **options)
    first = read_report(tmp_path)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    watch(monkeypatch, scores)
    again, _ = fit(model_folder, tmp_path, curve=Curve([], 0.02), ckpt_path=last, **options)
    assert all(torch.equal(matrices(again)[name], weight) for name, weight in matrices(module).items())
    second = read_report(tmp_path)
    assert (second.budget, second.frozen_digest, second.tasks) == (first.budget, first.frozen_digest, first.tasks)
    watch(monkeypatch, [0.9, 0.8])  # another budget needs no other training
    fit(model_folder, tmp_path, curve=Curve([], 0.2), ckpt_path=last, **options)
    assert read_report(tmp_path).budget.update_ratio == 0.1


@pytest.mark.slow
def test_a_checkpoint_that_does_not_know_the_order_is_refused(model_folder, tmp_path):
    fit(model_folder, tmp_path, ModelDowser(0.1))
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="the checkpoint knows the order of updates at the ratios none, this run"):
        fit(model_folder, tmp_path, ModelDowser(0.1), Curve(RATIOS), ckpt_path=last)


@pytest.mark.parametrize("method", [Full(), Grafting(0.1), Spider()], ids=lambda method: type(method).__name__)
def test_methods_without_a_score_are_refused(model_folder, tmp_path, method):
    with pytest.raises(ValueError, match=f"got dowser.method {type(method).__name__}, which has none"):
        fit(model_folder, tmp_path, method, Curve(RATIOS))


def test_what_cannot_be_kept_is_refused_before_anything_is_measured(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dowser_pl.callbacks.dowser.callback.protect", None)  # which would measure
    with pytest.raises(ValueError, match=r"got the ratio 0.2, above the dowser.method's update_ratio 0.1"):
        fit(model_folder, tmp_path, ModelDowser(0.1), Curve([0.05, 0.2]))
    with pytest.raises(ValueError, match="TinyData has none .`selection_tasks`.; with ConversationData"):
        fit(model_folder, tmp_path, ModelDowser(0.1), Curve(max_upstream_drop=0.1), TinyData())
    trainer = build_trainer(tmp_path, ModelDowser(0.1), [Curve(max_upstream_drop=0.1)])
    with pytest.raises(ValueError, match=r"model.also_train with 4 tensors .\S+projector\S+ \.\.\.., which have no"):
        trainer.fit(build_module(model_folder, also_train=["projector"]), datamodule=DataToChooseOn())


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="above 0 and at most 1; got 0"):
        Curve([0.1, 0.0])
    with pytest.raises(ValueError, match="above 0 and at most 1; got 1.5"):
        Curve([1.5])
    for drop in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="how much of the upstream mean may be lost"):
            Curve(max_upstream_drop=drop)


@pytest.mark.slow
def test_a_budget_of_drift_keeps_the_largest_ratio_within_it(model_folder, tmp_path):
    """Drift falls with the ratio, and no data is asked for; what is reported is of the model that is kept."""
    options = {"data": TinyData(), "drift": True}
    fit(model_folder, tmp_path / "all", ModelDowser(0.1), Curve([0.02, 0.05], max_drift=0.0), **options)
    drifts = read_report(tmp_path / "all").budget.drifts
    assert 0 < drifts[0.02] < drifts[0.05] < drifts[0.1]
    limit = (drifts[0.05] + drifts[0.1]) / 2
    fit(model_folder, tmp_path / "some", ModelDowser(0.1), Curve([0.02, 0.05], max_drift=limit), **options)
    report = read_report(tmp_path / "some")
    assert (report.budget.update_ratio, report.budget.kept) == (0.05, True)
    assert report.budget.drifts == {0.05: drifts[0.05], 0.1: drifts[0.1]}
    assert report.drift.all.kl == pytest.approx(drifts[0.05], rel=1e-5)


def test_both_budgets_are_kept(model_folder, tmp_path, monkeypatch):
    watch(monkeypatch, [0.9] * 6)  # the curve, the base and three ratios lose nothing
    with pytest.warns(UserWarning, match="loses 0.000 of the upstream mean and has KL"):
        fit(model_folder, tmp_path, ModelDowser(0.1), Curve(RATIOS, 0.02, max_drift=0.0), drift=True)
    assert not read_report(tmp_path).budget.kept


def test_a_budget_of_drift_needs_the_meter(model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"budget.max_drift .* not measured here: set --dowser.drift true"):
        fit(model_folder, tmp_path, ModelDowser(0.1), Curve(max_drift=0.1))


def test_a_checkpoint_without_drift_cannot_keep_a_budget_of_it(model_folder, tmp_path):
    """Refused when the run goes on, not when it ends."""
    fit(model_folder, tmp_path, ModelDowser(0.1), Curve(RATIOS), drift=False)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"budget.max_drift .* not measured here"):
        fit(model_folder, tmp_path, ModelDowser(0.1), Curve(RATIOS, max_drift=0.1), drift=True, ckpt_path=last)
