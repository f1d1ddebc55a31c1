"""A data module of one's own: any LightningDataModule that hands over these batches will do."""

from types import SimpleNamespace

from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader


class ColourData(LightningDataModule):
    """Squares of one colour, and the question which."""

    tasks = (SimpleNamespace(name="colours", role="downstream", metric="exact_match", max_new_tokens=4),)
    rows = ("red", "green", "blue") * 20

    def encode(self, colours, answers, side):
        processor = self.trainer.lightning_module.processor
        texts = [f"USER: <image>\nWhat colour? ASSISTANT:{answer}" for answer in answers]
        images = [Image.new("RGB", (32, 32), colour) for colour in colours]
        return dict(processor(text=texts, images=images, padding=True, padding_side=side, return_tensors="pt"))

    def training_batch(self, colours):
        batch = self.encode(colours, [f" {colour}</s>" for colour in colours], "right")
        num_asked = self.encode(colours[:1], [""], "right")["input_ids"].shape[1]
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batch["labels"][:, :num_asked] = -100  # no loss on the question
        return {**batch, "ids": [f"a {colour} square" for colour in colours]}

    def evaluation_batch(self, colours):
        inputs = self.encode(colours, [""] * len(colours), "left")
        return {"inputs": inputs, "references": [[colour] for colour in colours], "ids": list(colours)}

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=6, shuffle=True, collate_fn=self.training_batch)

    def val_dataloader(self):  # one loader per task
        return [DataLoader(self.rows[:12], batch_size=4, collate_fn=self.evaluation_batch)]
