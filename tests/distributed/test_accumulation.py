"""Batches that are accumulated on two ranks are the larger batch of one process."""

import pytest
import torch
from lightning.pytorch import Callback

from dowser_pl.distributed.tensors import full_tensor
from dowser_pl.masking import trained_whole
from dowser_pl.methods import Full, Lora, Spider
from dowser_pl.models.lora import LoraSettings
from dowser_pl.strategies.fsdp1 import FSDP1Strategy
from dowser_pl.strategies.fsdp2 import FSDP2Strategy
from tests.distributed.fits import UnevenData, fit
from tests.distributed.harness import alone, run
from tests.tiny_models import save_tiny_llava


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


class Steps(Callback):
    """Where training began, and the loss in the log at every step."""

    def __init__(self):
        self.losses, self.base = [], {}

    def on_train_start(self, trainer, pl_module):
        state = pl_module.state_dict()
        trained = dict(pl_module.protected.weights) | {
            key: state[key] for key in trained_whole(pl_module, pl_module.tuned_layers())
        }
        self.base = {name: full_tensor(weight).clone() for name, weight in trained.items()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not trainer.fit_loop._should_accumulate():
            self.losses.append(float(trainer.callback_metrics["train/loss"]))


class Apart(UnevenData):
    """Answers of one word on one rank, of nineteen on the other in some batches."""

    def train_conversations(self):
        rows = super().train_conversations()
        for index, row in enumerate(rows):
            row.messages[1]["content"][0]["text"] += " and red or blue" * (4 * (index % 5 == 0))
        return rows


STRATEGIES = {"ddp": "ddp", "fsdp2": FSDP2Strategy(), "fsdp1": FSDP1Strategy()}


def stepped(folder, model, *, batch, accumulate, strategy="ddp", **options):
    """Ten rows: a window of eight and a short one of two. How far all weights moved, and the losses."""
    steps = Steps()
    options |= {"data": Apart(10, batch), "accumulate_grad_batches": accumulate, "optimizer": "sgd", "max_epochs": 1}
    ended = fit(folder, model, strategy=STRATEGIES[strategy], callbacks=(steps,), **options)
    return torch.cat([(ended.weights[name] - base).flatten() for name, base in steps.base.items()]), steps.losses


CASES = {
    "ddp": {"strategy": "ddp"},
    "ddp dense": {"strategy": "ddp", "update": "dense", "checkpoint": "full"},
    "ddp full": {"strategy": "ddp", "method": Full()},
    "ddp lora": {"strategy": "ddp", "method": Lora(), "module": {"lora": LoraSettings(r=4, alpha=8.0)}},
    "ddp also train": {"strategy": "ddp", "module": {"also_train": ["projector", "norms"]}},
    "fsdp2": {"strategy": "fsdp2", "gradient_clip_val": 0.05},
    "fsdp2 spider": {"strategy": "fsdp2", "method": Spider()},
    "fsdp2 lora": {"strategy": "fsdp2", "method": Lora(), "module": {"lora": LoraSettings(r=4, alpha=8.0)}},
    "fsdp1": {"strategy": "fsdp1", "gradient_clip_val": 0.05},
    "fsdp1 also train": {"strategy": "fsdp1", "module": {"also_train": ["projector", "norms"]}},
}
QUICK = {"ddp", "fsdp2"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in CASES])
def test_two_ranks_that_accumulate_step_like_one_large_batch(model_folder, tmp_path, name):
    options = CASES[name]
    far, logged = alone(stepped, tmp_path / "one", model_folder, batch=8, accumulate=1, **options)
    assert len(logged) == 2
    for near, losses in run(stepped, tmp_path / "two", model_folder, batch=2, accumulate=4, **options):
        assert float((far - near).norm() / far.norm()) < 1e-5
        assert losses == pytest.approx(logged, rel=1e-5)
