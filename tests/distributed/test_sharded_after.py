"""Methods that decide after training where weights are sharded over two ranks, against one process."""

import pytest
import torch
from safetensors.torch import load_file

from tests.callbacks.test_after_fit import METHODS
from tests.distributed.fits import difference, fit
from tests.distributed.harness import alone, run
from tests.distributed.sharded import one_fast
from tests.tiny_models import save_tiny_llava


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
@one_fast
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "grafting")) for name in METHODS]
)
def test_two_ranks_end_where_one_process_does(model_folder, tmp_path, name, kind):
    options = {"max_epochs": 1, "num_rows": 16, "optimizer": "sgd", "method": METHODS[name], "strategy": kind}
    options |= {"export": True}
    one = alone(fit, tmp_path / "one", model_folder, **options)
    first, second = run(fit, tmp_path / "two", model_folder, **options)
    for matrix, mask in one.masks.items():
        assert torch.equal(mask, first.masks[matrix]) and torch.equal(mask, second.masks[matrix]), matrix
    assert one.frozen_digest == first.frozen_digest == second.frozen_digest
    assert one.frozen_digest["before"] == one.frozen_digest["after"]
    assert first.counts == second.counts and first.counts[0] == one.counts[0] and first.counts[1].changed > 0
    assert first.scores == second.scores == one.scores
    bound = 1e-5 * one.way
    assert difference(first, one) <= bound
    alone_file, file = (load_file(tmp_path / folder / "model" / "model.safetensors") for folder in ("one", "two"))
    assert alone_file.keys() == file.keys()
    assert all(torch.allclose(tensor, file[key], rtol=0, atol=bound) for key, tensor in alone_file.items())
    last = str(tmp_path / "two" / "checkpoints" / "last.ckpt")
    again = run(fit, tmp_path / "two", model_folder, ckpt_path=last, **options)
    assert difference(again[0], first) == 0 and again[0].frozen_digest == first.frozen_digest
