"""Accumulated batches are the larger batch: the same update, the same clipping, the same loss in the log."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision

from dowser_pl.callbacks import Dowser
from dowser_pl.methods import L2SP, Full, Lora, ModelDowser, Spider
from dowser_pl.models.lora import LoraSettings
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


class Answers(TinyData):
    """One word to learn in most rows, fifteen in every fourth; a batch of two has 2, 4 or 30 tokens of loss."""

    def train_conversations(self):
        rows = super().train_conversations()
        for row in rows[::4]:
            row.messages[1]["content"][0]["text"] += " and red or blue" * 5
        return rows


class Watch(Callback):
    """What was logged at, and the gradients before clipping of, every step."""

    def __init__(self):
        self.losses, self.gradients = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parts = [each.grad.flatten() for group in optimizer.param_groups for each in group["params"]]
        self.gradients.append(torch.cat(parts).clone())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not trainer.fit_loop._should_accumulate():
            self.losses.append(float(trainer.callback_metrics["train/loss"]))


def fit(model, folder, batch, accumulate, rows=8, method=None, module=None, callbacks=(), **options):
    """One epoch; weights that were trained, and what was watched."""
    watch = Watch()
    options = {"max_epochs": 1, "limit_val_batches": 1, "accumulate_grad_batches": accumulate, **options}
    trainer = build_trainer(folder, method or Full(), (*callbacks, watch), **options)
    built = build_module(model, scheduler="constant", **(module or {}))
    built.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    torch.manual_seed(0)
    trainer.fit(built, datamodule=Answers(rows, batch))
    entries = next(each for each in trainer.callbacks if isinstance(each, Dowser)).entries
    moved = [entries.values(name).detach().flatten() - entries.base_values(name).flatten() for name in entries.weights]
    return torch.cat(moved), watch


def assert_same(one, other, steps):
    (far, watched), (near, accumulated) = one, other
    assert len(watched.losses) == len(accumulated.losses) == steps
    assert float((far - near).norm() / far.norm()) < 1e-5
    assert accumulated.losses == pytest.approx(watched.losses, rel=1e-5)
    for large, small in zip(watched.gradients, accumulated.gradients, strict=True):
        assert float((large - small).norm() / large.norm()) < 1e-5


METHODS = {
    "full": {},
    "compact": {"method": ModelDowser(0.3)},
    "dense": {"method": ModelDowser(0.3), "update": "dense", "checkpoint": "full"},
    "clipped": {"method": ModelDowser(0.3), "gradient_clip_val": 0.05},
    "lora": {"method": Lora(), "module": {"lora": LoraSettings(r=4, alpha=8.0)}},
    "spider": {"method": Spider()},
    "penalty": {"method": L2SP(0.1)},
    "also train": {"module": {"also_train": ["projector", "norms"]}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_update_of_a_step_is_that_of_the_larger_batch(model_folder, tmp_path, name):
    one = fit(model_folder, tmp_path / "one", 8, 1, **METHODS[name])
    assert_same(one, fit(model_folder, tmp_path / "four", 2, 4, **METHODS[name]), 1)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "batch", "accumulate"), [(10, 2, 4), (9, 1, 8), (11, 4, 2), (12, 4, 3)])
def test_a_short_last_window_counts_its_own_tokens(model_folder, tmp_path, rows, batch, accumulate):
    one = fit(model_folder, tmp_path / "one", batch * accumulate, 1, rows)
    assert_same(one, fit(model_folder, tmp_path / "cut", batch, accumulate, rows), 2 if rows < 12 else 1)


@pytest.mark.slow
def test_a_window_that_grows_from_epoch_to_epoch(model_folder, tmp_path):
    schedule = GradientAccumulationScheduler({0: 2, 1: 4})
    _, watched = fit(model_folder, tmp_path, 2, 1, 10, callbacks=(schedule,), max_epochs=2)
    one = fit(model_folder, tmp_path / "one", 4, 1, 10)[1]
    assert len(watched.losses) == 3 + 2
    assert watched.losses[:3] == pytest.approx(one.losses, rel=1e-5)


def test_a_gradient_scaler_sees_what_it_would_see_of_the_larger_batch(model_folder, tmp_path):
    """On gradients that are scaled when a window ends, and unscaled before they are clipped."""

    def scaled():
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        plugin = MixedPrecision("bf16-mixed", "cpu")  # float16 would be too coarse to compare
        plugin.precision, plugin.scaler, plugin.autocast_context_manager = "16-mixed", scaler, torch.enable_grad
        return {"plugins": [plugin], "gradient_clip_val": 0.05}

    one = fit(model_folder, tmp_path / "one", 8, 1, 10, **scaled())
    assert_same(one, fit(model_folder, tmp_path / "four", 2, 4, 10, **scaled()), 2)
