"""Lightning's Trainer with one more verb."""

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

__all__ = ["DowserTrainer"]


class DowserTrainer(Trainer):
    """A Trainer that can also run the importance pass alone."""

    def probe(self, model: LightningModule, datamodule: LightningDataModule | None = None) -> None:
        """Run only the importance pass and fill the cache; no data is read and nothing is trained."""
        self.limit_train_batches = 0
        self.limit_val_batches = 0
        self.num_sanity_val_steps = 0
        self.fit_loop.max_epochs = 1
        self.fit(model, train_dataloaders=[])
