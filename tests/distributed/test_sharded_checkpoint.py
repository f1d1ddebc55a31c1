"""Checkpoints as folders that two ranks write together, and that any number of ranks goes on from."""

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from dowser_pl.callbacks import AtomicCheckpointIO
from dowser_pl.strategies import FSDP2Strategy
from tests.distributed.fits import difference, fit
from tests.distributed.harness import alone, outcomes, run
from tests.distributed.test_resume import fit_until, killed, rows_of_steps
from tests.tiny_models import save_tiny_llava

LAST = "checkpoints/last.ckpt"
SETTINGS = {"num_rows": 16, "batch_size": 4, "max_epochs": 2, "optimizer": "adamw"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def sharded_until(folder, model, step, **options):
    """Batches this rank saw before it stopped; checkpoints are folders."""
    return fit_until(folder, model, step, strategy=apart(), plugins=[AtomicCheckpointIO()], **options)


def plain_until(folder, model, step, **options):
    return fit_until(folder, model, step, plugins=[AtomicCheckpointIO()], **options)


def fit_sharded(folder, model, **options):
    return fit(folder, model, strategy=apart(), plugins=[AtomicCheckpointIO()], **options)


def apart():
    return FSDP2Strategy(save_distributed_checkpoint=True)


@pytest.mark.parametrize("checkpoint", ["compact", pytest.param("full", marks=pytest.mark.slow)])
def test_one_process_then_two_ranks_then_one(model_folder, tmp_path, checkpoint):
    """Stopped in mid epoch each time: a file of one process, then folders, also read by DDP."""
    settings = SETTINGS | {"checkpoint": checkpoint}
    unbroken = alone(fit, tmp_path / "unbroken", model_folder, **settings)
    folder, resumed = tmp_path / "run", settings | {"ckpt_path": str(tmp_path / "run" / LAST)}
    alone(plain_until, folder, model_folder, 1, **settings)
    assert (folder / LAST).is_file()
    sharded = run(sharded_until, folder, model_folder, 2, **resumed)
    assert (folder / LAST).is_dir()
    rows = rows_of_steps(unbroken.seen)
    assert rows_of_steps(*sharded) == rows[1:2]
    end = run(fit_sharded, folder, model_folder, **resumed)
    assert rows_of_steps(*(each.seen for each in end)) == rows[2:]
    for name, mask in unbroken.masks.items():
        assert torch.equal(mask, end[0].masks[name]), name
    assert end[0].frozen_digest == unbroken.frozen_digest
    assert difference(end[0], unbroken) <= 1e-3 * unbroken.way
