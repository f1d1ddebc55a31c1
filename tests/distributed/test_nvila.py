"""NVILA, from VILA's three folders and with pictures of several tiles, on two ranks against one process."""

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.fits import difference, fit
from tests.distributed.harness import alone, run
from tests.distributed.sharded import SHARDED
from tests.tiny_nvila import save_nvila
from tests.tiny_run import TinyData


class Tiles(TinyData):
    """Every third picture is one tile, the others are cut into three."""

    def __init__(self):
        super().__init__(12, 4)
        self.split_batches = True

    def train_conversations(self):
        rows = super().train_conversations()
        for number, row in enumerate(rows):
            row.images[:] = [image.resize((140, 70)) if number % 3 else image for image in row.images]
        return rows


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", *SHARDED])
def test_two_ranks_end_where_one_process_does(strategy, tmp_path):
    save_nvila(tmp_path / "model", shards=2, dtype=torch.float32)
    module = {"also_train": ["projector"], "gradient_checkpointing": True}
    options = {"max_epochs": 1, "optimizer": "sgd", "export": True, "module": module, "data": Tiles()}
    one = alone(fit, tmp_path / "one", tmp_path / "model", **options)
    kind = SHARDED[strategy]() if strategy in SHARDED else strategy
    first, second = run(fit, tmp_path / "two", tmp_path / "model", strategy=kind, **options)
    for matrix, mask in one.masks.items():
        assert torch.equal(mask, first.masks[matrix]) and torch.equal(mask, second.masks[matrix]), matrix
    assert len(one.masks) == 3 * 7 and any("multi_modal_projector" in name for name in one.weights)
    assert one.frozen_digest == first.frozen_digest == second.frozen_digest
    assert first.counts[0].changed == 0 and first.counts[1].changed > 0 and first.steps == one.steps > 0
    assert first.before == one.before and difference(first, one) <= 1e-4 * one.way
    written = [
        {
            path.relative_to(tmp_path / run_of / "model"): path
            for path in (tmp_path / run_of / "model").rglob("*.safetensors")
        }
        for run_of in ("one", "two")
    ]
    assert written[0].keys() == written[1].keys() and len(written[0]) == 4
    for name, path in written[0].items():
        before, after = load_file(path), load_file(written[1][name])
        assert all(torch.allclose(after[each], before[each], atol=1e-4 * one.way) for each in before)
