"""Learning-rate schedules: by name, and any of torch's."""

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from dowser_pl.methods import Random
from dowser_pl.module import MultimodalModule
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


class Rates(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def rates(folder, **module) -> list[float]:
    """After each of six steps, at 1.0 before the first."""
    seen = Rates()
    trainer = build_trainer(folder / "run", Random(0.1), [seen], max_epochs=1)
    trainer.fit(build_module(save_tiny_llava(folder / "model"), lr=1.0, weight_decay=0.0, **module), TinyData())
    return seen.seen


def test_a_class_of_torch_is_stepped_after_every_optimizer_step(tmp_path):
    assert rates(tmp_path, scheduler=lambda optimizer: StepLR(optimizer, 2, 0.5)) == [1, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_one_that_waits_for_a_plateau_looks_at_the_training_loss(tmp_path):
    """No loss is lower than the first by all of it, so that the rate falls whenever patience ends."""
    falling = rates(
        tmp_path, scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1)
    )
    assert falling[-1] < falling[0]
    assert sorted(falling, reverse=True) == falling


def test_warm_up_belongs_to_the_named_ones():
    with pytest.raises(ValueError, match="model.warmup_ratio belongs to constant, .*; got 0.1 beside another schedule"):
        MultimodalModule("embedded:world", scheduler=lambda optimizer: StepLR(optimizer, 2), warmup_ratio=0.1)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (StepLR, "model.scheduler cannot be built: .*'step_size'. Give what it takes"),
        (lambda optimizer: "steps", "model.scheduler: got str, expected one of constant, .* or a torch.optim"),
        (
            lambda optimizer: torch.optim.lr_scheduler.CyclicLR(optimizer, 1, [2, 3, 4]),
            "model.scheduler cannot be built: ",
        ),
    ],
    ids=["missing", "no schedule", "refused by torch"],
)
def test_what_is_no_schedule_ends_the_run_before_the_probe(tmp_path, schedule, message):
    with pytest.raises(ValueError, match=message):
        rates(tmp_path, scheduler=schedule)
    assert not list(tmp_path.glob("run/**/*.ckpt"))
