"""The loss in the log is that of all processes' rows, as one process would log it."""

import pytest
from lightning.pytorch import Callback

from dowser_pl.strategies.fsdp2 import FSDP2Strategy
from tests.distributed.fits import UnevenData, fit
from tests.distributed.harness import alone, run
from tests.tiny_models import save_tiny_llava


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


class Reads(Callback):
    """What was logged after every batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def logged(folder, model, strategy, **options):
    """Answers have two to eight tokens, so that processes have different numbers of them."""
    reads, chosen = Reads(), FSDP2Strategy() if strategy == "fsdp2" else strategy
    data = UnevenData(num_rows=16)
    fit(folder, model, strategy=chosen, data=data, callbacks=(reads,), max_epochs=1, optimizer="sgd", **options)
    return reads.losses


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_every_rank_logs_the_loss_of_all_rows(model_folder, tmp_path, strategy):
    one = alone(logged, tmp_path / "one", model_folder, strategy)
    assert len(one) == 4
    for losses in run(logged, tmp_path / "two", model_folder, strategy):
        assert losses == pytest.approx(one, rel=1e-5)
