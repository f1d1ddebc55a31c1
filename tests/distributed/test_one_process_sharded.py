"""One process under strategies that shard a model: FSDP2 cuts it all the same, FSDP1 has nothing to cut."""

from pathlib import Path

import pytest
import torch

from dowser_pl.callbacks import AtomicCheckpointIO
from dowser_pl.distributed.tensors import to_local
from dowser_pl.methods import ModelDowser
from dowser_pl.strategies.fsdp1 import FSDP1Strategy
from dowser_pl.strategies.fsdp2 import FSDP2Strategy
from tests.distributed.harness import alone
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

OPTIONS = {"devices": 1, "plugins": [AtomicCheckpointIO()], "max_epochs": 1}


def fit_and_look(folder, model):
    """A folder of FSDP2's, looked into under FSDP1; the weights after each."""
    found = []
    for verb, strategy in (("fit", FSDP2Strategy(save_distributed_checkpoint=True)), ("validate", FSDP1Strategy())):
        trainer = build_trainer(Path(folder), ModelDowser(0.1), strategy=strategy, **OPTIONS)
        module = build_module(Path(model))
        last = Path(folder) / "checkpoints" / "last.ckpt"
        assert not found or last.is_dir()
        getattr(trainer, verb)(module, datamodule=TinyData(4, 4), ckpt_path=str(last) if found else None)
        found.append({name: to_local(weight).clone() for name, weight in module.state_dict().items()})
    return found


@pytest.mark.slow
def test_fsdp1_reads_a_folder_of_fsdp2(tmp_path):
    fitted, validated = alone(fit_and_look, tmp_path / "run", save_tiny_llava(tmp_path / "model"))
    assert len(fitted) == len(validated)
    for name, weight in fitted.items():
        assert torch.equal(weight, validated[name]), name
