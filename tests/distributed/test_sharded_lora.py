"""Adapters beside weights that are sharded over two ranks, against one process."""

import pytest
import torch
from safetensors.torch import load_file

from dowser_pl.methods import Lora
from dowser_pl.models.lora import LoraSettings
from tests.distributed.fits import difference, fit
from tests.distributed.harness import alone, run
from tests.distributed.sharded import both
from tests.tiny_models import save_tiny_llava


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
@both
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_two_ranks_end_where_one_process_does(model_folder, tmp_path, precision, kind):
    """Float32 adapters beside weights of either precision; merged, written, and gone on with."""
    options = {"max_epochs": 1, "num_rows": 16, "method": Lora(), "module": {"lora": LoraSettings(r=4)}, "export": True}
    options |= {"strategy": kind, "optimizer": "sgd", "precision": precision, "gradient_clip_val": 0.05}
    one = alone(fit, tmp_path / "one", model_folder, **options)
    first, second = run(fit, tmp_path / "two", model_folder, **options)
    assert one.frozen_digest == first.frozen_digest == second.frozen_digest
    assert first.counts == second.counts and first.counts[1].entries == one.counts[1].entries
    assert first.counts[1].changed > 0 and first.steps == one.steps
    bound = (1e-5 if precision == "32-true" else 0.05) * one.way
    assert difference(first, one) <= bound
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        expected, found = (load_file(tmp_path / folder / file) for folder in ("one", "two"))
        assert expected.keys() == found.keys()
        rounding = 0.0 if precision == "32-true" else 2**-7  # of a sum in bfloat16
        for key, tensor in expected.items():
            assert torch.allclose(tensor.float(), found[key].float(), rounding, bound), (file, key)
    again = run(
        fit, tmp_path / "two", model_folder, ckpt_path=str(tmp_path / "two" / "checkpoints" / "last.ckpt"), **options
    )
    assert difference(again[0], first) == 0
    assert (tmp_path / "two" / "adapter" / "adapter_config.json").is_file()
