"""`checkpoint.keep best`: report, patch and folder are of the best validated model, whatever interrupts the run."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from dowser_pl.callbacks import Checkpoints, Dowser, Forgetting
from dowser_pl.errors import DowserError
from dowser_pl.methods import Full, ModelDowser, NullSpace
from dowser_pl.module.evaluation import EvaluatedModule
from dowser_pl.patches.patch import Patch
from dowser_pl.planning import plan_of
from dowser_pl.reporting import read_report
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import KillAt, Killed, TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture
def scored(monkeypatch):
    """Scores of the validations of a run that are not its own: by step, as given, else 0.5."""
    by_step = {}
    measured = Forgetting.on_validation_end

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            score = by_step.get(trainer.global_step, 0.5)
            pl_module.scores = dict.fromkeys(pl_module.scores, score)
        measured(self, trainer, pl_module)

    monkeypatch.setattr(Forgetting, "on_validation_end", on_validation_end)
    return by_step


def fit(
    model_folder, folder, method=None, keep="best", callbacks=(), ckpt_path=None, module=None, data=None, **options
):
    """6 steps an epoch, 3 epochs."""
    options = {"max_epochs": 3, "limit_val_batches": 1, **options}
    trainer = build_trainer(folder, method or ModelDowser(0.1), keep=keep, **options)
    trainer.callbacks[:0] = callbacks
    module = module or build_module(model_folder, lr=2e-2, scheduler="constant")
    try:
        trainer.fit(module, datamodule=data or TinyData(), ckpt_path=ckpt_path)
    except Killed:
        assert callbacks
    return module, trainer


def matrices(module):
    return {name: layer.weight.detach().clone() for name, layer in module.tuned_layers().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, options",
    [
        (ModelDowser(0.1), {"precision": "bf16-true"}),
        (ModelDowser(0.1), {"update": "dense"}),
        (NullSpace(), {}),
        (Full(), {}),
    ],
    ids=["compact bf16", "dense", "null space", "full"],
)
def test_the_best_epoch_is_what_a_run_ends_as(model_folder, tmp_path, scored, method, options):
    scored.update({6: 0.6, 12: 0.9, 18: 0.4})
    after_two, _ = fit(model_folder, tmp_path / "two", method, keep="last", max_epochs=2, **options)
    last, _ = fit(model_folder, tmp_path / "last", method, keep="last", **options)
    module, trainer = fit(model_folder, tmp_path / "best", method, export=True, **options)
    assert same(matrices(module), matrices(after_two))
    assert not same(matrices(module), matrices(last))
    report = read_report(tmp_path / "best")
    assert (report.steps, report.kept.step) == (18, 12)
    assert [(each.step, each.epoch, each.score) for each in report.kept.validated] == [
        (6, 1, 0.6),
        (12, 2, 0.9),
        (18, 3, 0.4),
    ]
    assert report.frozen.changed == 0
    saved = load_file(tmp_path / "best" / "model" / "model.safetensors")
    assert any(torch.equal(each, next(iter(matrices(module).values()))) for each in saved.values())
    page = (tmp_path / "best" / "report.md").read_text()
    assert "Kept: the model of epoch 2 (step 12), whose score of 0.900 is the best of 3 validations" in page
    assert "the last, of step 18, has 0.400" in page
    checkpoint = torch.load(tmp_path / "best" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 18
    if isinstance(method, ModelDowser):
        with Patch.open(tmp_path / "best" / "patch.safetensors") as patch:
            name = patch.names[0]
            dowser = next(each for each in trainer.callbacks if isinstance(each, Dowser))
            assert sum(map(patch.num_entries, patch.names)) == dowser.entries.num_trainable, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "update, precision", [("compact", "bf16-true"), ("dense", "bf16-true"), ("compact", "32-true")]
)
def test_the_plan_counts_what_is_kept_on_the_host(model_folder, tmp_path, update, precision):
    planned = []

    class Planning(Callback):
        def on_train_start(self, trainer, pl_module):
            tuned = [layer.weight for layer in pl_module.tuned_layers().values()]
            number = next(each for each in trainer.callbacks if isinstance(each, Dowser)).entries.num_trainable
            plan = plan_of(trainer, pl_module.network, tuned, number, update, trainer.optimizers[0])
            planned.append(plan.held.host - replace(plan, best=False).held.host)

    module = build_module(model_folder, also_train=["norms"])
    options = {"update": update, "precision": precision, "max_epochs": 1, "callbacks": [Planning()]}
    _, trainer = fit(model_folder, tmp_path, module=module, **options)
    best = next(each for each in trainer.callbacks if isinstance(each, Checkpoints))._best
    held = [*best._entries.values(), *best._whole.values()]
    assert planned == [sum(each.nbytes for each in held)] and len(best._whole) > 0


@pytest.mark.slow
def test_scores_after_training_are_measured_on_the_kept_model(model_folder, tmp_path, monkeypatch):
    """Nothing is put in the place of scores: the report has those that a run of that length reports."""
    scores = iter([0.2, 0.8, 0.3, 0.1, 0.1])
    monkeypatch.setattr(Forgetting, "means", lambda self, module, of: {"h_score": next(scores)})
    fit(model_folder, tmp_path / "two", keep="last", max_epochs=2)
    fit(model_folder, tmp_path / "best", drift=True)
    two, best = (read_report(tmp_path / name) for name in ("two", "best"))
    assert best.kept.step == 12
    assert best.tasks == two.tasks
    assert best.questions == two.questions


@pytest.mark.slow
def test_parts_that_are_trained_whole_go_back_too(model_folder, tmp_path, scored):
    scored.update({6: 0.9, 12: 0.2, 18: 0.2})
    parts = [build_module(model_folder, lr=2e-2, scheduler="constant", also_train=["projector"]) for _ in range(3)]
    fit(model_folder, tmp_path / "one", keep="last", max_epochs=1, module=parts[0])
    fit(model_folder, tmp_path / "last", keep="last", module=parts[1])
    fit(model_folder, tmp_path / "best", module=parts[2])
    states = [each.state_dict() for each in parts]
    keys = [key for key in states[0] if "projector" in key and "weight" in key]
    assert keys
    assert all(torch.equal(states[0][key], states[2][key]) for key in keys)
    assert not any(torch.equal(states[0][key], states[1][key]) for key in keys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "hook, step, every", [("on_train_batch_start", 14, None), ("on_train_end", 18, 1), ("on_validation_start", 18, 1)]
)
def test_a_killed_run_keeps_the_same_model(model_folder, tmp_path, scored, hook, step, every):
    scored.update({6: 0.6, 12: 0.9, 18: 0.4})
    whole, _ = fit(model_folder, tmp_path / "whole", every=every)
    kill = KillAt(step)
    kill.on_train_batch_start, strike = (lambda *_: None), kill.on_train_batch_start
    setattr(kill, hook, strike)
    fit(model_folder, tmp_path / "cut", callbacks=[kill], every=every)
    assert not (tmp_path / "cut" / "report.json").exists()
    again, _ = fit(model_folder, tmp_path / "cut", ckpt_path="last", every=every)
    assert same(matrices(again), matrices(whole))
    assert read_report(tmp_path / "cut").kept == read_report(tmp_path / "whole").kept


@pytest.mark.slow
def test_the_last_model_is_kept_where_it_is_the_best(model_folder, tmp_path, scored):
    scored.update({6: 0.6, 12: 0.7})
    last, _ = fit(model_folder, tmp_path / "last", keep="last", max_epochs=2)
    best, _ = fit(model_folder, tmp_path / "best", max_epochs=2)
    assert same(matrices(last), matrices(best))
    assert read_report(tmp_path / "best").kept.step == 12
    assert read_report(tmp_path / "last").kept is None
    assert "it is also the last" in (tmp_path / "best" / "report.md").read_text()


@pytest.mark.slow
def test_of_equal_ones_the_last_is_kept(model_folder, tmp_path, scored):
    scored.update({6: 0.9, 12: 0.9, 18: 0.2})
    two, _ = fit(model_folder, tmp_path / "two", keep="last", max_epochs=2)
    best, _ = fit(model_folder, tmp_path / "best")
    assert read_report(tmp_path / "best").kept.step == 12
    assert same(matrices(best), matrices(two))


class DataToChooseOn(TinyData):
    def questions_to_choose_on(self):
        return self.evaluation_tasks()


def test_questions_to_choose_on_choose_where_there_are_some(model_folder, tmp_path, scored, monkeypatch):
    scored.update({6: 0.9, 12: 0.1, 18: 0.2})
    by_step, measured = {6: 0.2, 12: 0.3, 18: 0.1}, EvaluatedModule.score_tasks

    def score_tasks(self, tasks, loaders):
        assert set(measured(self, tasks, loaders)) == {"colour", "yesno"}
        return {task.name: by_step[self.trainer.global_step] for task in tasks}

    monkeypatch.setattr(EvaluatedModule, "score_tasks", score_tasks)
    fit(model_folder, tmp_path, data=DataToChooseOn())
    kept = read_report(tmp_path).kept
    assert (kept.step, kept.apart, [each.score for each in kept.validated]) == (12, True, [0.2, 0.3, 0.1])
    assert "It was chosen on other questions than those of this report." in (tmp_path / "report.md").read_text()


def test_a_checkpoint_that_knows_of_no_validation_is_refused(model_folder, tmp_path):
    fit(model_folder, tmp_path, keep="last", max_epochs=1)
    with pytest.raises(DowserError, match="of step 6, does not know how models before it scored.*keep last"):
        fit(model_folder, tmp_path, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))


def test_what_it_needs_is_asked_for_before_anything_runs(model_folder, tmp_path):
    with pytest.raises(DowserError, match="keep is last or best; got 'first'"):
        Checkpoints(str(tmp_path), keep="first")
    trainer = build_trainer(tmp_path)
    trainer.callbacks[:] = [Checkpoints(str(tmp_path), keep="best")]
    with pytest.raises(DowserError, match="trainer.callbacks without Dowser and Forgetting"):
        trainer.fit(build_module(model_folder), datamodule=TinyData())
