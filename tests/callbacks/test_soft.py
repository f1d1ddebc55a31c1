"""Runs of methods that decide after every step: they pull, resume bit by bit, and say what they are."""

import pytest
import torch
from lightning.pytorch import Callback

from dowser_pl.callbacks import Dowser
from dowser_pl.callbacks.dowser import importance
from dowser_pl.importance import Probe
from dowser_pl.methods import L2SP, Anchor, Full, MoFO, SoftDowser, Spider
from dowser_pl.models.loading import load_model
from dowser_pl.module import MultimodalModule
from dowser_pl.reporting import read_report
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

METHODS = {"spider": Spider(), "anchor": Anchor(0.9), "l2sp": L2SP(0.1), "soft_dowser": SoftDowser(), "mofo": MoFO()}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def dowser_of(trainer):
    return next(each for each in trainer.callbacks if isinstance(each, Dowser))


def fit(model_folder, folder, method, ckpt_path=None, module_options=None, **options):
    trainer = build_trainer(folder, method, limit_val_batches=1, **{"max_epochs": 1, **options})
    module = build_module(model_folder, **(module_options or {}))
    trainer.fit(module, datamodule=TinyData(), ckpt_path=ckpt_path)
    return trainer, module, dowser_of(trainer)


def weights_of(module):
    return {name: value.clone() for name, value in module.network.state_dict().items()}


def distance(module, model_folder):
    base = load_model(str(model_folder), dtype="float32")
    return sum(
        float((layer.weight.float() - base.get_submodule(name).weight).square().sum())
        for name, layer in module.tuned_layers().items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_run_pulls_to_its_base_and_touches_nothing_else(model_folder, tmp_path, name):
    _, module, dowser = fit(model_folder, tmp_path, METHODS[name], accumulate_grad_batches=2, gradient_clip_val=1.0)
    _, free, _ = fit(model_folder, tmp_path / "full", Full(), accumulate_grad_batches=2, gradient_clip_val=1.0)
    assert 0 < distance(module, model_folder) < distance(free, model_folder)
    base, tuned = load_model(str(model_folder), dtype="float32"), set(module.tuned_layers())
    for key, value in base.state_dict().items():
        assert torch.equal(value, module.network.state_dict()[key]) == (key.removesuffix(".weight") not in tuned), key
    frozen, trainable = dowser.counts
    assert frozen.entries == 0 and 0 < trainable.changed <= trainable.entries
    report = read_report(tmp_path)
    assert report.update_ratio is None and report.method == type(METHODS[name]).__name__
    assert report.frozen_digest["before"] == report.frozen_digest["after"]
    assert not (tmp_path / "patch.safetensors").exists()


class Kill(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 4:
            raise KeyError("killed")


@pytest.mark.parametrize(
    ("name", "precision", "checkpoint"),
    [
        pytest.param("spider", "32-true", "compact", marks=pytest.mark.slow),
        pytest.param("spider", "bf16-true", "full", marks=pytest.mark.slow),
        ("soft_dowser", "bf16-true", "compact"),
        pytest.param("anchor", "bf16-true", "compact", marks=pytest.mark.slow),
        pytest.param("l2sp", "32-true", "full", marks=pytest.mark.slow),
        ("mofo", "bf16-true", "compact"),
        pytest.param("mofo", "32-true", "full", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_ends_like_an_unbroken_one(model_folder, tmp_path, monkeypatch, name, precision, checkpoint):
    options = {"precision": precision, "checkpoint": checkpoint, "gradient_clip_val": 1.0}
    _, whole, dowser = fit(model_folder, tmp_path / "whole", METHODS[name], **options)
    with pytest.raises(KeyError, match="killed"):
        fit(model_folder, tmp_path / "cut", METHODS[name], callbacks=[Kill()], **options)
    monkeypatch.setattr(importance, "measure", lambda *_: pytest.fail("probed tuned weights"))
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    _, resumed, again = fit(model_folder, tmp_path / "cut", METHODS[name], last, **options)
    assert all(torch.equal(value, weights_of(whole)[key]) for key, value in weights_of(resumed).items())
    assert again.counts == dowser.counts and again.frozen_digest == dowser.frozen_digest


def test_gradients_are_summed_as_the_optimizer_takes_them(model_folder, tmp_path):
    """Averaged over accumulated batches, and clipped."""

    class Spy(Callback):
        sums = None

        def on_train_start(self, trainer, pl_module):
            trainer.optimizers[0].register_step_post_hook(self.add)

        def add(self, optimizer, *_):
            gradients = [each.grad.clone() for each in optimizer.param_groups[0]["params"]]
            assert float(torch.cat(gradients).norm()) <= 0.1001
            self.sums = gradients if self.sums is None else [a + b for a, b in zip(self.sums, gradients, strict=True)]

    spy = Spy()
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "callbacks": [spy]}
    _, _, dowser = fit(model_folder, tmp_path, Spider(), **options)
    kept = [entry["sum"].flatten() for entry in dowser.entries.state_dict().values()]
    assert all(map(torch.equal, kept, spy.sums)) and bool(kept[0].any())


def test_a_compact_checkpoint_leaves_the_base_out(model_folder, tmp_path):
    fit(model_folder, tmp_path, SoftDowser(), max_steps=2)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert not checkpoint["state_dict"]
    (state,) = (each for name, each in checkpoint["callbacks"].items() if "Dowser" in name)
    assert {kind for entry in state["entries"].values() for kind in entry} == {"mask", "values", "sum", "prior"}


def test_what_a_method_of_this_kind_cannot_have_is_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match="Spider decides after every step.*set --dowser.update compact"):
        Dowser(Spider(), update="dense")
    module = MultimodalModule(str(model_folder), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    with pytest.raises(ValueError, match="got the optimizer SGD with a method that chooses entries by Adam's first"):
        build_trainer(tmp_path, MoFO()).fit(module, datamodule=TinyData())
    trainer = build_trainer(tmp_path, SoftDowser())
    trainer.callbacks[0].probe = Probe(num_prompts="auto")
    with pytest.raises(ValueError, match="SoftDowser has no mask; set --dowser.probe.num_prompts"):
        trainer.fit(build_module(model_folder), datamodule=TinyData())
    fit(model_folder, tmp_path, Anchor(0.9), max_steps=2)
    with pytest.raises(ValueError, match="'keep': 0.9.* this run asks for .*'keep': 0.8"):
        fit(model_folder, tmp_path, Anchor(0.8), tmp_path / "checkpoints" / "last.ckpt")
