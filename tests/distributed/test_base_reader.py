"""The pull to the base and masked tokens on two ranks, over accumulated batches too, step like one large batch."""

import json
from pathlib import Path

import pytest

from dowser_pl.importance.kl_to_base import KLToBase
from dowser_pl.methods import Full, Lora
from dowser_pl.models.lora import LoraSettings
from tests.distributed.harness import alone, outcomes, run
from tests.distributed.test_accumulation import stepped
from tests.tiny_models import save_tiny_llava

HELD = {"kl_to_base": KLToBase(weight=2.0), "max_perplexity": 30.0}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def masked(folder):
    return json.loads((Path(folder) / "report.json").read_text())["diagnostics"]["masked_tokens"]


CASES = {
    "compact": {"method": Full()},
    "dense": {"update": "dense", "checkpoint": "full"},
    "lora": {"method": Lora(), "module": {"lora": LoraSettings(r=4, alpha=8.0)}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_that_accumulate_step_like_one_large_batch(model_folder, tmp_path, name):
    options = CASES[name]
    far, logged = alone(stepped, tmp_path / "one", model_folder, batch=8, accumulate=1, **options, **HELD)
    free, _ = alone(stepped, tmp_path / "free", model_folder, batch=8, accumulate=1, **options)
    for near, losses in run(stepped, tmp_path / "two", model_folder, batch=2, accumulate=4, **options, **HELD):
        assert float((far - near).norm() / far.norm()) < 1e-5 < float((far - free).norm() / far.norm())
        assert losses == pytest.approx(logged, rel=1e-5)
    assert masked(tmp_path / "one") == masked(tmp_path / "two") > 0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp1", "fsdp2"])
def test_sharded_weights_are_refused_on_every_rank(model_folder, tmp_path, strategy):
    options = {"batch": 2, "accumulate": 1, "strategy": strategy}
    for outcome in outcomes(stepped, tmp_path, model_folder, **options, **HELD):
        assert "got dowser.kl_to_base and dowser.max_perplexity with weights that are sharded" in outcome.message
        assert "set --dowser.kl_to_base null and --dowser.max_perplexity null" in outcome.message
