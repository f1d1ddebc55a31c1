"""Drift on two ranks, whole models on each or sharded over them, against one process; and the rows behind it."""

import pytest

from dowser_pl.methods import NullSpace
from tests.distributed.fits import difference, fit
from tests.distributed.harness import alone, run
from tests.distributed.test_sharded_soft import fit_until
from tests.tiny_models import save_tiny_llava

OPTIONS = {"max_epochs": 1, "num_rows": 16, "optimizer": "sgd", "drift": True}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def one(model_folder, tmp_path_factory):
    return alone(fit, tmp_path_factory.mktemp("one"), model_folder, **OPTIONS)


@pytest.mark.parametrize("kind", ["ddp", *(pytest.param(each, marks=pytest.mark.slow) for each in ("fsdp1", "fsdp2"))])
def test_two_ranks_measure_what_one_process_does(model_folder, tmp_path, one, kind):
    """Sharded heads give their likeliest tokens alone, of a vocabulary that is smaller than their number."""
    first, second = run(fit, tmp_path, model_folder, strategy=kind, **OPTIONS)
    assert difference(first, second) == 0
    for source, drift in one.report["drift"].sources.items():
        found = first.report["drift"].sources[source]
        assert found.positions == drift.positions
        assert found.kl == pytest.approx(drift.kl, rel=1e-3, abs=1e-6) and drift.kl > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_resumed_run_goes_on_with_the_same_base(model_folder, tmp_path, one, kind):
    run(fit_until, tmp_path, model_folder, 2, strategy=kind, **OPTIONS)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    resumed, _ = run(fit, tmp_path, model_folder, strategy=kind, ckpt_path=last, **OPTIONS)
    assert resumed.report["drift"].all.kl == pytest.approx(one.report["drift"].all.kl, rel=1e-3)


@pytest.mark.slow
def test_a_cache_serves_all_ranks(model_folder, tmp_path):
    """Rows are written in turns by both, or read by the first and sent."""
    options = OPTIONS | {"cache_dir": str(tmp_path / "cache"), "method": NullSpace(rank=4, tokens=40)}
    written, _ = run(fit, tmp_path / "a", model_folder, **options)
    read, _ = run(fit, tmp_path / "b", model_folder, **options)
    assert difference(written, read) == 0 and len(list((tmp_path / "cache").glob("*-rows-*.json"))) == 2
