"""Runs that were killed, on one rank or two, and go on with another number of ranks."""

import os
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from tests.distributed.fits import difference, fit
from tests.distributed.harness import alone, outcomes, run
from tests.tiny_models import save_tiny_llava

LAST = "checkpoints/last.ckpt"
SETTINGS = {"num_rows": 16, "batch_size": 4, "max_epochs": 2, "optimizer": "sgd"}  # four steps an epoch


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


class Killed(Callback):
    """SIGKILL to the last rank before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Stopped(Callback):
    """An error on every rank before a step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.seen: list[list[str]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyError("stopped here")
        self.seen.append(list(batch["ids"]))


def killed(folder, model, ranks, step, **options):
    """The job, until the last rank dies; the others must end as well, and not as if nothing had been."""
    ended = outcomes(fit, folder, model, ranks=ranks, callbacks=(Killed(step),), **options)
    assert ended[-1].status == -signal.SIGKILL, ended[-1]
    assert all(outcome.status == 1 for outcome in ended[:-1]), ended
    assert torch.load(Path(folder) / LAST, weights_only=True)["global_step"] == step


def fit_until(folder, model, step, **options):
    """Batches that this rank saw before it stopped."""
    stop = Stopped(step)
    with pytest.raises(KeyError, match="stopped here"):
        fit(folder, model, callbacks=(stop,), **options)
    return stop.seen


def rows_of_steps(*seen):
    """Sorted ids of the rows of each step; from the batches that each rank saw."""
    return [sorted(row for batch in batches for row in batch) for batches in zip(*seen, strict=True)]


@pytest.fixture(scope="module")
def unbroken(model_folder, tmp_path_factory):
    return alone(fit, tmp_path_factory.mktemp("one"), model_folder, **SETTINGS)


@pytest.mark.slow
def test_a_rank_killed_in_mid_epoch_ends_the_job_and_it_goes_on_bit_for_bit(model_folder, tmp_path):
    killed(tmp_path / "broken", model_folder, 2, 6, **SETTINGS)
    whole = run(fit, tmp_path / "whole", model_folder, **SETTINGS)
    resumed = run(fit, tmp_path / "broken", model_folder, ckpt_path=str(tmp_path / "broken" / LAST), **SETTINGS)
    assert [each.seen for each in resumed] == [each.seen[6:] for each in whole]
    for name, weight in whole[0].weights.items():
        assert torch.equal(weight, resumed[0].weights[name]) and torch.equal(weight, resumed[1].weights[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("update", ["compact", pytest.param("dense", marks=pytest.mark.slow)])
def test_one_rank_then_two_then_one(model_folder, tmp_path, unbroken, update):
    """Stopped in mid epoch each time; every row comes once an epoch, and the end is that of an unbroken run."""
    settings = SETTINGS | {"update": update, "ckpt_path": str(tmp_path / LAST)}
    killed(tmp_path, model_folder, 1, 2, **settings | {"ckpt_path": None})
    pair = run(fit_until, tmp_path, model_folder, 5, **settings)
    end = alone(fit, tmp_path, model_folder, **settings)
    rows = rows_of_steps(unbroken.seen)
    assert len(rows) == 8
    assert rows_of_steps(*pair) == rows[2:5]
    assert rows_of_steps(end.seen) == rows[5:]
    assert difference(end, unbroken) <= 1e-5 * unbroken.way
    assert end.frozen_digest == unbroken.frozen_digest
    for name, mask in unbroken.masks.items():
        assert torch.equal(mask, end.masks[name]), name


@pytest.mark.slow
def test_other_rows_a_step_are_refused_in_mid_epoch(model_folder, tmp_path):
    """Where every rank takes as many rows as the only one did before, a step is not what it was."""
    killed(tmp_path, model_folder, 1, 2, **SETTINGS)
    ended = outcomes(fit, tmp_path, model_folder, ckpt_path=str(tmp_path / LAST), **SETTINGS | {"batch_size": 8})
    for outcome in ended:
        assert "written in the middle of an epoch" in outcome.message
        assert "each of the 2 processes has 2 rows a step" in outcome.message


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_steps_that_ran_out_in_mid_epoch_go_on_with_the_rows_that_were_left(model_folder, tmp_path, strategy):
    """Six batches an epoch, three windows of two; the only checkpoint is that of the end."""
    settings = SETTINGS | {"num_rows": 24, "every": None, "accumulate_grad_batches": 2, "strategy": strategy}
    settings |= {"module": {"scheduler": "constant", "warmup_ratio": 0.0}}
    whole = run(fit, tmp_path / "whole", model_folder, **settings)
    ended = run(fit, tmp_path / "cut", model_folder, **settings, max_steps=2)
    resumed = run(fit, tmp_path / "cut", model_folder, ckpt_path=str(tmp_path / "cut" / LAST), **settings)
    assert [one.seen + other.seen for one, other in zip(ended, resumed, strict=True)] == [each.seen for each in whole]
    for name, weight in whole[0].weights.items():
        assert torch.equal(weight, resumed[0].weights[name]) and torch.equal(weight, resumed[1].weights[name]), name
