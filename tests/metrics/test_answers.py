from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import Metric

from dowser_pl.metrics import METRICS, build_metric

ROWS = [("two dogs", ["two dogs", "2 dogs"]), ("a cat", ["a bird"]), ("red", ["red"] * 3 + ["blue"] * 7)]


def fed(name: str, rows: list[tuple[str, list[str]]], sync_on_compute: bool = True) -> Metric:
    metric = METRICS[name](sync_on_compute=sync_on_compute)
    metric.update([prediction for prediction, _ in rows], [references for _, references in rows])
    return metric


@pytest.mark.parametrize("name", METRICS)
def test_lengths_must_agree(name: str) -> None:
    with pytest.raises(ValueError, match="got 2 predictions and 1 lists"):
        build_metric(name).update(["A", "B"], [["A"]])


@pytest.mark.parametrize("name", METRICS)
def test_a_row_needs_a_reference(name: str) -> None:
    with pytest.raises(ValueError, match="row 1 has no reference"):
        build_metric(name).update(["A", "B"], [["A"], []])


@pytest.mark.parametrize("name", METRICS)
def test_bare_strings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"Write \['A'\]"):
        build_metric(name).update(["A"], ["A"])
    with pytest.raises(ValueError, match="got one string"):
        build_metric(name).update("A", ["A"])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", ["exact_match", "vqa", "multiple_choice"])
def test_no_rows_no_mean(name: str) -> None:
    with pytest.raises(ValueError, match="no row was scored"):
        build_metric(name).compute()


@pytest.mark.parametrize("name", METRICS)
def test_empty_batch_changes_nothing(name: str) -> None:
    rows = [("A", ["A"]), ("B", ["C"])]
    metric = fed(name, rows)
    metric.update([], [])
    assert torch.equal(metric.compute(), fed(name, rows).compute())


def test_unknown_metric_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"exact_match, vqa, multiple_choice, cider.*mean 'exact_match'"):
        build_metric("exactmatch")


def on_rank(rank: int, folder: str, check: Callable[[int], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    check(rank)
    dist.destroy_process_group()


def scores_of_two_ranks_are_those_of_one(rank: int) -> None:
    for name in ("exact_match", "vqa", "cider"):
        alone = fed(name, ROWS, sync_on_compute=False)
        for split in (1, 3):  # uneven, and one rank without any row
            shares = (ROWS[:split], ROWS[split:])
            assert torch.equal(fed(name, shares[rank]).compute(), alone.compute()), (name, split, rank)


def test_ranks_reduce_exactly(tmp_path: Path) -> None:
    mp.spawn(on_rank, args=(str(tmp_path), scores_of_two_ranks_are_those_of_one), nprocs=2)
