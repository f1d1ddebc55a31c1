"""Which rows make which batch."""

import pytest
from torch.utils.data import DistributedSampler

from dowser_pl.data.loaders import EvaluationSampler, ResumableSampler, per_process


@pytest.mark.parametrize("num_replicas", [1, 2, 3])
@pytest.mark.parametrize(("num_rows", "batch_size"), [(11, 2), (12, 4), (1, 8), (2, 1), (7, 7)])
def test_training_order_shows_every_row(num_rows, batch_size, num_replicas):
    orders = [ResumableSampler(num_rows, batch_size, 0, rank, num_replicas) for rank in range(num_replicas)]
    epochs = [list(order) for order in orders]
    rows = sorted(row for batches in epochs for batch in batches for row in batch)
    assert set(rows) == set(range(num_rows))
    assert len(rows) < num_rows + num_replicas
    for order, batches in zip(orders, epochs, strict=True):
        assert [len(batch) for batch in batches] == [len(batch) for batch in epochs[0]]
        assert len(batches) == len(order)
        assert isinstance(order, DistributedSampler)  # or Lightning would split the rows again


def test_training_order_is_a_function_of_seed_and_epoch():
    one, other = ResumableSampler(50, 4, seed=1), ResumableSampler(50, 4, seed=1)
    other.set_epoch(3)
    list(other)
    other.set_epoch(0)
    assert list(one) == list(other)
    assert list(one) != list(ResumableSampler(50, 4, seed=2))
    other.set_epoch(1)
    assert list(one) != list(other)


def test_resumed_epoch_goes_on_and_reports_its_full_length():
    whole, order = ResumableSampler(11, 2, seed=1), ResumableSampler(11, 2, seed=1)
    order.resume(3, 4, **order.layout())
    whole.set_epoch(3)
    order.set_epoch(3)
    assert list(order) == list(whole)[4:]
    assert len(order) == 6
    whole.set_epoch(4)
    order.set_epoch(4)
    assert list(order) == list(whole)


def test_resume_refuses_another_layout():
    order = ResumableSampler(11, 2, seed=1)
    with pytest.raises(ValueError, match=r"middle of an epoch with .*'batch_size': 3.*this run has .*'batch_size': 2"):
        order.resume(0, 4, num_rows=11, batch_size=3, seed=1, num_replicas=1)
    order.resume(1, 0, num_rows=11, batch_size=3, seed=1, num_replicas=1)  # at an epoch's start anything may change


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_another_number_of_processes_goes_on_with_the_rows_that_are_left(before, after):
    """8 rows a step; 27 rows, of which 8 are done."""
    old = [ResumableSampler(27, 8 // before, 1, rank, before) for rank in range(before)]
    new = [ResumableSampler(27, 8 // after, 1, rank, after) for rank in range(after)]
    done = {row for order in old for row in order.batches(3)[0]}
    for order in new:
        order.resume(3, 1, **old[0].layout())
        order.set_epoch(3)
    left = [row for order in new for batch in order for row in batch]
    assert len(done) == 8 and len(left) == 19 + -27 % after  # rows of an uneven share come twice at the end
    assert set(range(27)) - done == set(left) - done and len(set(left) & done) <= -27 % after
    assert len({len(order) for order in (*old, *new)}) == 1


def test_resume_says_how_many_rows_each_process_is_to_take():
    order = ResumableSampler(27, 8, 1, 0, 2)
    with pytest.raises(ValueError, match="each of the 2 processes has 4 rows a step"):
        order.resume(3, 1, **ResumableSampler(27, 8, 1).layout())
    with pytest.raises(ValueError, match="Use the same data and settings"):
        order.resume(3, 1, **ResumableSampler(26, 8, 1).layout())


def test_rows_of_a_step_are_shared_evenly_or_not_at_all():
    assert per_process(32, 2) == 16
    with pytest.raises(ValueError, match="multiple of the number of processes, got 32 rows for 3 processes"):
        per_process(32, 3)


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize(("num_rows", "batch_size"), [(11, 2), (12, 4), (5, 1), (9, 100)])
def test_evaluation_order_shows_every_row_once_in_equally_many_batches(num_rows, batch_size, num_replicas):
    orders = [EvaluationSampler(num_rows, batch_size, rank, num_replicas) for rank in range(num_replicas)]
    batches = [list(order) for order in orders]
    assert sorted(row for some in batches for batch in some for row in batch) == list(range(num_rows))
    assert {len(some) for some in batches} == {len(orders[0])}
    assert all(0 < len(batch) <= max(batch_size, 2) for some in batches for batch in some)


def test_evaluation_order_needs_a_row_per_process():
    with pytest.raises(ValueError, match="1 rows, fewer than the 2 processes"):
        EvaluationSampler(1, 4, 0, 2)
