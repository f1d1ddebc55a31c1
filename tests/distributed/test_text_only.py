"""Models of text alone on two ranks, replicated and sharded, against one process."""

import pytest
import torch

from tests.distributed.fits import difference, fit
from tests.distributed.harness import alone, run
from tests.distributed.sharded import SHARDED
from tests.tiny_models import save_text_model
from tests.tiny_run import TinyTextData


def data():
    found = TinyTextData(16, 4)
    found.split_batches = True
    return found


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", *SHARDED])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_two_ranks_end_where_one_process_does(family, strategy, tmp_path):
    model = save_text_model(tmp_path / "model", family)
    options = {"max_epochs": 1, "optimizer": "sgd", "data": data(), "export": True}
    one = alone(fit, tmp_path / "one", model, **options)
    kind = SHARDED[strategy]() if strategy in SHARDED else strategy
    first, second = run(fit, tmp_path / "two", model, strategy=kind, **options)
    for matrix, mask in one.masks.items():
        assert torch.equal(mask, first.masks[matrix]) and torch.equal(mask, second.masks[matrix]), matrix
    assert one.frozen_digest == first.frozen_digest == second.frozen_digest
    assert first.counts[0].changed == 0 and first.counts[1].changed > 0 and first.steps == one.steps > 0
    assert first.before == one.before and difference(first, one) <= 1e-5 * one.way
    files = [{path.name for path in (tmp_path / run_of / "model").iterdir()} for run_of in ("one", "two")]
    assert files[0] == files[1] >= {"config.json", "tokenizer.json", "model.safetensors"}
