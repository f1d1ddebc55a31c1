"""What every data module owes the rest of the package, as asserts."""

import torch

from dowser_pl.metrics import build_metric


def check_training_batch(batch):
    batch = dict(batch)
    ids = batch.pop("ids")
    assert all(isinstance(value, torch.Tensor) for value in batch.values())
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert len(ids) == len(batch["input_ids"])
    learnt = batch["labels"] != -100
    assert learnt.any(dim=1).all()
    assert not learnt.all()
    assert torch.equal(batch["labels"][learnt], batch["input_ids"][learnt])
    assert batch["attention_mask"][learnt].all()


def check_evaluation_batch(batch):
    assert {"inputs", "references", "ids"} <= set(batch) <= {"inputs", "references", "ids", "told"}
    inputs = batch["inputs"]
    assert all(isinstance(value, torch.Tensor) for value in inputs.values())
    assert inputs["attention_mask"][:, -1].all()  # padded on the left
    assert len(batch["ids"]) == len(batch["references"]) == len(inputs["input_ids"])
    assert all(isinstance(text, str) for references in batch["references"] for text in references)


def check_data(data):
    """Runs all loaders of a data module that is set up."""
    assert len(data.tasks) == len(data.val_dataloader()) > 0
    for task, loader in zip(data.tasks, data.val_dataloader(), strict=True):
        assert task.role in ("upstream", "downstream")
        assert task.max_new_tokens > 0
        build_metric(task.metric)
        for batch in loader:
            check_evaluation_batch(batch)
    for batch in data.train_dataloader():
        check_training_batch(batch)
