"""The example of the README keeps the contract, under a real Trainer."""

from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from tokenizers import pre_tokenizers

from tests.data import custom_data_example
from tests.data.builders import build_llava
from tests.data.contract import check_evaluation_batch, check_training_batch
from tests.data.custom_data_example import ColourData


class Checker(LightningModule):
    def __init__(self):
        super().__init__()
        self.processor = build_llava()
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)  # no token across words, as in real vocabularies
        self.processor.tokenizer.backend_tokenizer.pre_tokenizer = words
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.num_batches = {"train": 0, "val": 0}

    def training_step(self, batch, index):
        check_training_batch(batch)
        said = [self.processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
        assert said == [f" {row.split()[1]}</s>" for row in batch["ids"]]
        self.num_batches["train"] += 1
        return self.weight.sum()

    def validation_step(self, batch, index):
        check_evaluation_batch(batch)
        self.num_batches["val"] += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_custom_data(tmp_path):
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    module, data = Checker(), ColourData()
    trainer.fit(module, datamodule=data)
    assert module.num_batches == {"train": 10, "val": 3}
    assert len(data.tasks) == len(data.val_dataloader())


def test_the_example_stays_short():
    assert len(Path(custom_data_example.__file__).read_text().splitlines()) <= 40
