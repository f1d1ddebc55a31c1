"""Runs that were killed under one strategy and go on under another, with another number of ranks."""

from pathlib import Path

import pytest
import torch

from dowser_pl.methods import ModelDowser
from tests.distributed.fits import difference, fit
from tests.distributed.harness import alone, run
from tests.distributed.sharded import SHARDED, both
from tests.distributed.test_resume import LAST, fit_until, killed, rows_of_steps
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


SETTINGS = {"num_rows": 16, "batch_size": 4, "max_epochs": 2, "optimizer": "adamw"}


@pytest.fixture(scope="module")
def unbroken(model_folder, tmp_path_factory):
    return alone(fit, tmp_path_factory.mktemp("unbroken"), model_folder, **SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "checkpoint, earlier, later",
    [
        ("compact", "fsdp1", "fsdp2"),
        ("compact", "fsdp2", "fsdp2"),
        ("full", "fsdp2", "fsdp1"),
        ("full", "fsdp1", "fsdp1"),
    ],
)
def test_one_process_then_two_ranks_then_others(model_folder, tmp_path, unbroken, checkpoint, earlier, later):
    """Stopped in mid epoch under no strategy, a sharded one, DDP, then a sharded one to the end of an unbroken run."""
    settings = SETTINGS | {"checkpoint": checkpoint}
    folder, resumed = tmp_path / "run", settings | {"ckpt_path": str(tmp_path / "run" / LAST)}
    alone(fit_until, folder, model_folder, 1, **settings)
    sharded = run(until, folder, model_folder, 2, earlier, **resumed)
    copied = run(fit_until, folder, model_folder, 3, **resumed)
    again = run(until, folder, model_folder, 5, later, **resumed)
    end = alone(fit, folder, model_folder, **resumed)
    rows = rows_of_steps(unbroken.seen)
    assert rows_of_steps(*sharded) == rows[1:2] and rows_of_steps(*copied) == rows[2:3]
    assert rows_of_steps(*again) == rows[3:5] and rows_of_steps(end.seen) == rows[5:]
    for name, mask in unbroken.masks.items():
        assert torch.equal(mask, end.masks[name]), name
    assert end.frozen_digest == unbroken.frozen_digest
    assert difference(end, unbroken) <= 1e-3 * unbroken.way


def until(folder, model, step, kind, **options):
    return fit_until(folder, model, step, strategy=SHARDED[kind](), **options)


@pytest.mark.slow
@both
def test_a_run_whose_rank_was_killed_goes_on_bit_for_bit(model_folder, tmp_path, kind):
    settings = {"num_rows": 16, "optimizer": "adamw", "gradient_clip_val": 0.05, "strategy": kind, "patience": 1.0}
    settings |= {"module": {"also_train": ["projector", "lm_head"]}, "max_epochs": 1}
    whole = run(fit, tmp_path / "whole", model_folder, **settings)
    killed(tmp_path / "run", model_folder, 2, 2, **settings)
    last = str(tmp_path / "run" / LAST)
    resumed = run(fit, tmp_path / "run", model_folder, ckpt_path=last, **settings)
    assert difference(whole[0], resumed[0]) == 0 and whole[0].frozen_digest == resumed[0].frozen_digest


def validated(folder, model, kind):
    """Scores of a checkpoint."""
    trainer = build_trainer(Path(folder), ModelDowser(0.5), devices=2, strategy=kind)
    module = build_module(Path(model))
    data = Memorised()
    trainer.validate(module, data, ckpt_path=str(Path(folder) / LAST), verbose=False)
    return module.scores


@pytest.fixture(scope="module")
def learnt(model_folder, tmp_path_factory):
    """Folder and end of one process that learnt the answers."""
    folder = tmp_path_factory.mktemp("learnt")
    options = {"max_epochs": 8, "data": Memorised(), "optimizer": "adamw", "method": ModelDowser(0.5)}
    return folder, alone(fit, folder, model_folder, **options)


@pytest.mark.slow
@both
def test_a_checkpoint_is_validated_by_two_ranks(model_folder, learnt, kind):
    folder, one = learnt
    assert one.scores["colour"] > one.before["colour"]
    assert run(validated, folder, model_folder, kind) == [one.scores, one.scores]


class Memorised(TinyData):
    """Asks what it teaches."""

    def __init__(self) -> None:
        super().__init__(num_rows=12, batch_size=4)
