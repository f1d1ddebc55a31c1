"""Replay in whole runs: what it adds, that off is off, and that a run that was killed goes on with the same bits."""

import pytest
import torch
from lightning.pytorch import Callback

from dowser_pl.callbacks import Checkpoints, Dowser, RandomState
from dowser_pl.cli.trainer import DowserTrainer
from dowser_pl.errors import DowserError
from dowser_pl.importance import Rows
from dowser_pl.importance.replay import Replay, replay_gradient
from dowser_pl.methods import Full, Magnitude, ModelDowser, Spider
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import SMALL_PROBE, KillAt, Killed, TinyData, build_module


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


class Steps(Callback):
    """The KL of every step, and the gradient that the optimizer is given."""

    def __init__(self):
        self.kl, self.gradients = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        self.gradients.append(torch.cat([each.grad.flatten() for each in parameters]).clone())
        self.kl.append(trainer.callback_metrics.get("train/replay_kl"))


def fit(folder, model_folder, replay, method=None, module=None, callbacks=(), ckpt_path=None, data=None, **options):
    """Six steps of two rows, or as many as the options say."""
    update = options.pop("update", "compact")
    rows = Rows(per_source=20, num_tokens=8)
    dowser = Dowser(method or Magnitude(0.2), SMALL_PROBE, None, update=update, rows=rows, replay=replay, drift=False)
    steps = Steps()
    trainer = DowserTrainer(
        callbacks=[dowser, Checkpoints(str(folder / "checkpoints"), 1), RandomState(), steps, *callbacks],
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        **{"max_epochs": 1, **options},
    )
    module = module or build_module(model_folder, lr=1e-2)
    trainer.fit(module, datamodule=data or TinyData(), ckpt_path=ckpt_path)
    return module, steps, dowser


def weights(module):
    return {name: each.clone() for name, each in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_weight_zero_and_null_change_no_bit(tmp_path, model_folder):
    without = weights(fit(tmp_path / "a", model_folder, None)[0])
    off = fit(tmp_path / "b", model_folder, Replay(weight=0.0))
    assert same(without, weights(off[0])) and off[1].kl[-1] is None
    assert not same(without, weights(fit(tmp_path / "c", model_folder, Replay())[0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "update"),
    [(ModelDowser(0.2), "compact"), (ModelDowser(0.2), "dense"), (Full(), "compact"), (Spider(), "compact")],
)
def test_it_holds_the_model_to_its_base(tmp_path, model_folder, method, update):
    free = fit(tmp_path / "a", model_folder, Replay(weight=1e-9), method, update=update)[1]
    held = fit(tmp_path / "b", model_folder, Replay(weight=10.0), method, update=update)[1]
    assert held.kl[0] < 1e-6  # nothing was learnt yet
    assert 0 < held.kl[-1] < free.kl[-1]
    # of the base itself: replay pulls nowhere
    torch.testing.assert_close(held.gradients[0], free.gradients[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_accumulated_batches_get_the_gradient_of_replay_once(tmp_path, model_folder):
    """The same rows in one batch and in three; replay's gradient is zero at the first step alone."""
    options = {"replay": Replay(weight=5.0), "method": Full()}
    runs = []
    for name, size, number in [("one", 6, 1), ("three", 2, 3)]:
        data = TinyData(12, size)
        runs.append(fit(tmp_path / name, model_folder, data=data, accumulate_grad_batches=number, **options)[1])
    assert len(runs[0].gradients) == len(runs[1].gradients) == 2
    for one, three in zip(runs[0].gradients, runs[1].gradients, strict=True):
        torch.testing.assert_close(one, three, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_every_other_step_at_twice_the_weight(tmp_path, model_folder, monkeypatch):
    factors = []

    def listening(network, base, numbers, factor, backward):
        factors.append(factor)
        return replay_gradient(network, base, numbers, factor, backward)

    monkeypatch.setattr("dowser_pl.callbacks.dowser.replay.replay_gradient", listening)
    free = fit(tmp_path / "a", model_folder, None, Full(), max_steps=3)[1]
    rare = fit(tmp_path / "b", model_folder, Replay(1.5, every=2), Full(), max_steps=3)[1]
    assert factors == [3.0, 3.0]  # of steps 0 and 2
    torch.testing.assert_close(rare.gradients[1], free.gradients[1], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(rare.gradients[2], free.gradients[2], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path, model_folder):
    whole = weights(fit(tmp_path / "whole", model_folder, Replay())[0])
    with pytest.raises(Killed):
        fit(tmp_path / "cut", model_folder, Replay(), callbacks=[KillAt(3)])
    resumed = fit(tmp_path / "cut", model_folder, Replay(), ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert len(resumed[1].gradients) == 3
    assert same(whole, weights(resumed[0]))


@pytest.mark.slow
def test_resuming_with_another_replay_is_refused(tmp_path, model_folder):
    with pytest.raises(Killed):
        fit(tmp_path, model_folder, Replay(), callbacks=[KillAt(3)])
    for other in (None, Replay(weight=2.0)):
        with pytest.raises(DowserError, match="resume with the same --dowser.replay"):
            fit(tmp_path, model_folder, other, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")


@pytest.mark.slow
def test_sources_are_those_that_the_base_writes(tmp_path, model_folder):
    dowser = fit(tmp_path / "a", model_folder, Replay(sources=["noise"]), max_steps=1)[2]
    assert {row.kind for row in dowser._replayer.base.rows} == {"noise"}
    with pytest.raises(DowserError, match=r"'noise', 'shuffle', 'text'.*no rows of \['blank'\].*rows.sources"):
        fit(tmp_path / "b", model_folder, Replay(sources=["blank"]), max_steps=1)


@pytest.mark.slow
def test_gradient_checkpointing_and_half_precision_go_on(tmp_path, model_folder):
    module = build_module(model_folder, lr=1e-2, gradient_checkpointing=True)
    steps = fit(tmp_path, model_folder, Replay(), module=module, precision="bf16-mixed")[1]
    assert all(torch.isfinite(each).all() for each in steps.gradients) and 0 < steps.kl[-1] < 10


def test_rows_that_nothing_trained_looks_at_add_no_gradient(tmp_path, model_folder):
    """With the projector alone, rows of words have none."""
    module = build_module(model_folder, lr=1e-2, also_train=["projector"])
    steps = fit(tmp_path, model_folder, Replay(), Magnitude(0.0), module=module)[1]
    assert all(torch.isfinite(each).all() for each in steps.gradients)
