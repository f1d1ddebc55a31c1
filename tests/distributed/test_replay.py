"""Replay on two ranks: where each reads all rows, both and one process alone end alike, however weights are kept."""

import pytest
import torch

from dowser_pl.callbacks.dowser.replay import check_replay
from dowser_pl.cli.trainer import DowserTrainer
from dowser_pl.errors import DowserError
from dowser_pl.importance.replay import Replay
from dowser_pl.strategies import FSDP1Strategy
from tests.distributed.fits import difference, fit
from tests.distributed.harness import alone, run
from tests.distributed.sharded import fit_sharded
from tests.tiny_models import save_tiny_llava

OPTIONS = {"max_epochs": 1, "num_rows": 16, "optimizer": "sgd", "replay": Replay(weight=3.0, rows=999)}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
def test_two_ranks_end_where_one_process_does(model_folder, tmp_path):
    one = alone(fit, tmp_path / "one", model_folder, **OPTIONS)
    free = alone(fit, tmp_path / "free", model_folder, **OPTIONS | {"replay": None})
    first, second = run(fit, tmp_path / "two", model_folder, **OPTIONS)
    for weight in one.weights:
        assert torch.equal(first.weights[weight], second.weights[weight]), weight
    assert difference(first, one) <= 1e-4 * one.way < difference(free, one)


@pytest.mark.slow
def test_sharded_weights_end_where_one_process_does(model_folder, tmp_path):
    one = alone(fit, tmp_path / "one", model_folder, **OPTIONS)
    first, second = run(fit_sharded, tmp_path / "two", model_folder, "fsdp2", **OPTIONS)
    for weight in one.weights:
        assert torch.equal(first.weights[weight], second.weights[weight]), weight
    assert difference(first, one) <= 1e-4 * one.way


def test_what_would_add_a_wrong_gradient_is_refused():
    class Two:
        world_size, strategy = 2, None

    with pytest.raises(DowserError, match="update 'dense' on 2 processes"):
        check_replay(Two(), Replay(), "dense")
    check_replay(Two(), Replay(), "compact")
    check_replay(Two(), None, "dense")
    trainer = DowserTrainer(accelerator="cpu", logger=False, strategy=FSDP1Strategy())
    with pytest.raises(DowserError, match="FSDP1.*fsdp2"):
        check_replay(trainer, Replay(), "compact")
