"""The Hugging Face Trainer on two ranks: one model comes out, that of one process with the batches of both."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from dowser_pl.integrations import DowserCallback
from dowser_pl.methods import ModelDowser
from tests.distributed.harness import alone, outcomes, run
from tests.tiny_models import VOCABULARY, tiny_llama, tiny_tokenizer
from tests.tiny_run import SMALL_PROBE

ROWS = torch.randint(8, len(VOCABULARY), (8, 12), generator=torch.Generator().manual_seed(0)).tolist()


def trained(folder, batch, resume=False, steps=4, update="dense", **options):
    """All weights of the model, and what was counted."""
    callback = DowserCallback(ModelDowser(0.1), probe=SMALL_PROBE, update=update)
    usual = {"learning_rate": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.1, "max_steps": steps, "save_steps": 2}
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}
    trainer = Trainer(
        tiny_llama(),
        TrainingArguments(str(folder), per_device_train_batch_size=batch, **{**usual, **quiet, **options}),
        train_dataset=[{"input_ids": row, "labels": row} for row in ROWS],
        processing_class=tiny_tokenizer(),
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=resume)
    assert callback.counts[0].changed == 0
    return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()]), callback.frozen_digest


def flat(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.mark.slow
def test_two_ranks_end_as_one_process_does_and_go_on_bit_for_bit(tmp_path):
    (far, _) = alone(trained, tmp_path / "one", batch=4)
    (first, digest), (second, same) = run(trained, tmp_path / "two", batch=2)
    assert torch.equal(first, second) and digest == same and digest["before"] == digest["after"]
    moved = float((far - flat(tiny_llama())).norm())
    assert moved > 0 and float((far - first).norm()) < 1e-3 * moved
    assert (tmp_path / "two" / "patch.safetensors").is_file()
    (again, _), _ = run(trained, tmp_path / "two", batch=2, resume=str(tmp_path / "two" / "checkpoint-2"))
    assert torch.equal(again, first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fsdp": "full_shard", "fsdp_config": {"version": 2}}, "got a Trainer with FSDP"),
        ({"update": "compact"}, "got update 'compact' and 2 processes"),
    ],
)
def test_what_cannot_hold_on_two_ranks_is_refused_before_training(tmp_path, options, message):
    ended = outcomes(trained, tmp_path, batch=2, **options)
    assert all(message in each.message for each in ended), [each.message for each in ended]
