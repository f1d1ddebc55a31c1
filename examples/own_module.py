"""Fine-tune without forgetting in a LightningModule of your own: say where the model is, and add one callback."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from dowser_pl import Dowser, ModelDowser, PatchFile, Probe, Protectable, load_model, load_processor

QUESTIONS = {"what is 2 plus 3 ?": "red", "what is 4 plus 1 ?": "blue"}  # new facts, to see that something is learnt


class Own(LightningModule):
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.model = load_model(folder, dtype="float32")  # or AutoModelForImageTextToText.from_pretrained(folder)
        self.processor = load_processor(folder)
        self.protectable = Protectable(self.model, self.processor)  # what the callback works with

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.model(**batch, labels=batch["input_ids"]).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.protectable.parameters(), lr=3e-3)


def main(folder: str = "embedded:world", out: str = "runs/own_module") -> str:
    seed_everything(0)
    module = Own(folder)
    texts = [f"{question} {answer}" for question, answer in QUESTIONS.items()]
    rows = DataLoader(texts * 8, batch_size=4, collate_fn=lambda each: dict(module.processor.tokenizer(
        each, return_tensors="pt", padding=True
    )))  # fmt: skip
    dowser = Dowser(ModelDowser(update_ratio=0.1), Probe(num_prompts=16), cache_dir=None, checkpoint="full")
    trainer = Trainer(default_root_dir=out, accelerator="auto", max_epochs=2, callbacks=[dowser, PatchFile()])
    trainer.fit(module, rows)
    frozen, trained = dowser.counts
    print(f"{trained.changed:,} entries moved; {frozen.changed} of {frozen.entries:,} frozen ones")
    return dowser.frozen_digest["after"]


if __name__ == "__main__":
    main()
