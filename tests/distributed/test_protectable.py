"""Somebody's LightningModule on two ranks: one model comes out, that of one process with the batches of both."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader, DistributedSampler

from dowser_pl.callbacks import Dowser
from dowser_pl.integrations import Protectable
from dowser_pl.methods import ModelDowser
from dowser_pl.models import load_model, load_processor
from tests.distributed.harness import alone, run
from tests.tiny_models import VOCABULARY, save_tiny_llava
from tests.tiny_run import FEW_ROWS, SMALL_PROBE

ROWS = torch.randint(8, len(VOCABULARY), (8, 12), generator=torch.Generator().manual_seed(0))


class Own(LightningModule):
    def __init__(self, folder):
        super().__init__()
        self.llm = load_model(folder, dtype="float32")
        self.head = torch.nn.Linear(1, 1)  # of its own, beside the model
        self.protectable = Protectable(self.llm, load_processor(folder))

    def training_step(self, batch, batch_idx):
        loss = self.llm(input_ids=batch, labels=batch).loss
        return loss + self.head(loss.detach().view(1, 1)).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW([*self.protectable.parameters(), *self.head.parameters()], lr=1e-2)


def trained(folder, model_folder, batch, update):
    """All weights of the model, and those beside it, after two steps."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    seed_everything(rank)  # heads differ until they are sent
    module = Own(str(model_folder))
    dowser = Dowser(ModelDowser(0.1), SMALL_PROBE, None, checkpoint="full", rows=FEW_ROWS, update=update)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        default_root_dir=folder, callbacks=[dowser], max_epochs=1, enable_checkpointing=False, **options,
        use_distributed_sampler=False,
        strategy="ddp" if batch == 2 else "auto", devices=2 if batch == 2 else 1,
    )  # fmt: skip
    ranks = 4 // batch
    sampler = DistributedSampler(ROWS, ranks, rank, shuffle=False)
    trainer.fit(module, DataLoader(ROWS, batch_size=batch, sampler=sampler))
    assert dowser.counts[0].changed == 0
    return (
        torch.cat([weight.detach().flatten() for weight in module.llm.parameters()]),
        torch.cat([weight.detach().flatten() for weight in module.head.parameters()]),
    )


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
@pytest.mark.parametrize("update", ["compact", "dense"])
def test_two_ranks_end_as_one_process_does(model_folder, tmp_path, update):
    far, head = alone(trained, tmp_path / "one", model_folder, batch=4, update=update)
    base = load_model(str(model_folder), dtype="float32")
    start = torch.cat([weight.detach().flatten() for weight in base.parameters()])
    first, second = run(trained, tmp_path / "two", model_folder, batch=2, update=update)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    moved = float((far - start).norm())
    assert float((far - first[0]).norm()) < 1e-3 * moved
    assert torch.allclose(first[1], head, atol=1e-4)
