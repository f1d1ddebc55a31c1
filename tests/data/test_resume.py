"""A run that was killed and goes on sees exactly the batches of one that was not, and ends with the same weights.

Every checkpoint of an uninterrupted run is resumed by a fresh trainer, module and data module.
"""

import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

from dowser_pl.callbacks import EpochProgress
from dowser_pl.data import Conversation, MultimodalData, Question, Task
from dowser_pl.data.loaders import ResumableSampler
from tests.data.builders import build_llava, chat_template, turn

NUM_ROWS, BATCH_SIZE = 11, 2  # six batches, the last one smaller


class Numbers(MultimodalData):
    def __init__(self, num_workers=0, batch_size=BATCH_SIZE):
        super().__init__(batch_size, num_workers=num_workers)
        self.processor = build_llava(chat_template())

    def train_conversations(self):
        return [
            Conversation(str(i), [turn("user", "x"), turn("assistant", "y" * i)], []) for i in range(1, NUM_ROWS + 1)
        ]

    def evaluation_tasks(self):
        return [
            Task("t", "upstream", "exact_match", [Question(str(i), [turn("user", "x")], [], ["y"]) for i in range(3)])
        ]


class Diary(LightningModule):
    """Writes down its batches; its weights depend on their content and order."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches, self.epoch_ends = [], []

    def training_step(self, batch, index):
        self.batches.append((self.current_epoch, index, *batch["ids"]))
        return (self.weight - batch["attention_mask"].float().mean()).square().sum()

    def validation_step(self, batch, index):
        pass

    def on_train_epoch_end(self):
        self.epoch_ends.append(self.current_epoch)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        steps = self.trainer.estimated_stepping_batches  # makes Lightning ask for the training loader early
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (steps + 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}


class RestoresLate(SingleDeviceStrategy):
    """Restores like the sharded strategies: after the optimizers are made."""

    restore_checkpoint_after_setup = True


def fit(ckpt_path=None, folder=None, num_workers=0, late=False, batch_size=BATCH_SIZE, save=None, count=(), **options):
    """One run; `save` = arguments of ModelCheckpoint."""
    checkpoints = (
        [*count] + [ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}-{step}", **save)] if folder else []
    )
    trainer = Trainer(
        accelerator="cpu",
        strategy=RestoresLate("cpu") if late else "auto",
        callbacks=checkpoints,
        logger=False,
        enable_checkpointing=bool(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    module = Diary()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", ".*your dataloader is not resumable")
        trainer.fit(module, datamodule=Numbers(num_workers, batch_size), ckpt_path=ckpt_path, weights_only=True)
    return module


EVERY_STEP = {"every_n_train_steps": 1}
EVERY_EPOCH = {"every_n_epochs": 1}
AFTER_VALIDATION = {"every_n_epochs": 1, "save_on_train_epoch_end": False}
CASES = {
    "every step": {"save": EVERY_STEP, "max_epochs": 2},
    "every step without validation": {"save": EVERY_STEP, "max_epochs": 2, "limit_val_batches": 0},
    "accumulated gradients": {"save": EVERY_STEP, "max_epochs": 2, "accumulate_grad_batches": 4},
    "workers": {"save": {"every_n_train_steps": 4}, "max_epochs": 2, "num_workers": 2},
    "end of epoch": {"save": EVERY_EPOCH, "max_epochs": 3},
    "end of epoch with workers": {"save": EVERY_EPOCH, "max_epochs": 2, "num_workers": 2},
    "after validation": {"save": AFTER_VALIDATION, "max_epochs": 3},
    "inside an epoch, after validation": {"save": AFTER_VALIDATION, "max_epochs": 2, "val_check_interval": 0.5},
    "end of epoch with max_steps": {"save": EVERY_EPOCH, "max_steps": 14},
    "every step with max_steps": {"save": {"every_n_train_steps": 5}, "max_steps": 14},
    "restored late": {"save": {"every_n_train_steps": 5}, "max_epochs": 2, "late": True},
    "restored late with workers": {"save": {"every_n_train_steps": 4}, "max_epochs": 2, "late": True, "num_workers": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_resumed_run_equals_uninterrupted_run(tmp_path, options):
    whole = fit(folder=tmp_path, **options)
    checkpoints = sorted(tmp_path.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert len(checkpoints) > 1
    options = {**options, "save": None}
    for path in checkpoints:
        resumed = fit(str(path), **options)
        num_done = len(whole.batches) - len(resumed.batches)
        steps = torch.load(path, weights_only=True)["global_step"]
        assert num_done == steps or options.get("accumulate_grad_batches")
        assert resumed.batches == whole.batches[num_done:]
        assert torch.equal(resumed.weight, whole.weight)


# after a resume ModelCheckpoint, unlike `Checkpoints`, saves in mid accumulation, which no run can go on from
KILLED_TWICE = [name for name in CASES if "workers" not in name and "accumulated" not in name]


UNCOUNTED = ["every step with max_steps", "end of epoch"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, counted", [*((name, True) for name in KILLED_TWICE), *((name, False) for name in UNCOUNTED)]
)
def test_a_resumed_run_that_is_killed_goes_on_as_well(tmp_path, name, counted):
    """Lightning counts epochs otherwise after a resume at the end of one; the rows are right even so."""
    options = CASES[name] | {"count": [EpochProgress()] if counted else []}
    whole = fit(folder=tmp_path, **options)
    for first in sorted(tmp_path.glob("*.ckpt")):
        again = tmp_path / first.stem
        fit(str(first), again, **options)
        found = sorted(again.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        for second in {found[0], found[len(found) // 2]} if found else ():
            resumed = fit(str(second), **{**options, "save": None})
            num_done = len(whole.batches) - len(resumed.batches)
            steps = torch.load(second, weights_only=True)["global_step"]
            assert num_done == steps
            if counted:
                assert resumed.batches == whole.batches[num_done:], (first.stem, second.stem)
                assert torch.equal(resumed.weight, whole.weight)
            else:
                assert [b[2:] for b in resumed.batches] == [b[2:] for b in whole.batches[num_done:]]


def test_each_epoch_has_its_own_order_of_all_rows():
    batches = fit(max_epochs=2).batches
    epochs = [[row for epoch, _, *rows in batches if epoch == number for row in rows] for number in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(str(i) for i in range(1, NUM_ROWS + 1))
    assert epochs[0] != epochs[1]


def test_lightning_leaves_the_order_alone():
    """Otherwise its DistributedSampler would see batches as rows."""
    data = Numbers()
    data.setup("fit")
    assert isinstance(data.train_dataloader().sampler, ResumableSampler)
    assert data.train_dataloader().batch_sampler is None


def test_another_batch_size_in_mid_epoch_is_refused(tmp_path):
    fit(folder=tmp_path, save={"every_n_train_steps": 4}, max_epochs=1)
    (path,) = tmp_path.glob("*.ckpt")
    with pytest.raises(ValueError, match=r"middle of an epoch with .*'batch_size': 2.* this run has .*'batch_size': 3"):
        fit(str(path), max_epochs=1, batch_size=3)


def test_a_second_fit_starts_afresh(tmp_path):
    fit(folder=tmp_path, save={"every_n_train_steps": 4}, max_epochs=1)
    (path,) = Path(tmp_path).glob("*.ckpt")
    data = Numbers()
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    first, second = Diary(), Diary()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(max_epochs=1, **options).fit(first, datamodule=data, ckpt_path=path, weights_only=True)
        Trainer(max_epochs=1, **options).fit(second, datamodule=data)
    assert (len(first.batches), len(second.batches)) == (2, 6)


def test_overfit_batches_is_refused():
    with pytest.raises(ValueError, match="overfit_batches"):
        fit(max_epochs=1, overfit_batches=2)
