"""Which rows make which batch."""

import pytest
from torch.utils.data import DistributedSampler

from dowser_pl.data.order import EvaluationOrder, TrainingOrder


@pytest.mark.parametrize("num_replicas", [1, 2, 3])
@pytest.mark.parametrize(("num_rows", "batch_size"), [(11, 2), (12, 4), (1, 8), (2, 1), (7, 7)])
def test_training_order_shows_every_row(num_rows, batch_size, num_replicas):
    orders = [TrainingOrder(num_rows, batch_size, 0, rank, num_replicas) for rank in range(num_replicas)]
    epochs = [list(order) for order in orders]
    rows = sorted(row for batches in epochs for batch in batches for row in batch)
    assert set(rows) == set(range(num_rows))
    assert len(rows) < num_rows + num_replicas
    for order, batches in zip(orders, epochs, strict=True):
        assert [len(batch) for batch in batches] == [len(batch) for batch in epochs[0]]
        assert len(batches) == len(order)
        assert isinstance(order, DistributedSampler)  # or Lightning would split the rows again


def test_training_order_is_a_function_of_seed_and_epoch():
    one, other = TrainingOrder(50, 4, seed=1), TrainingOrder(50, 4, seed=1)
    other.set_epoch(3)
    list(other)
    other.set_epoch(0)
    assert list(one) == list(other)
    assert list(one) != list(TrainingOrder(50, 4, seed=2))
    other.set_epoch(1)
    assert list(one) != list(other)


def test_resumed_epoch_goes_on_and_reports_its_full_length():
    whole, order = TrainingOrder(11, 2, seed=1), TrainingOrder(11, 2, seed=1)
    order.resume(3, 4, **order.layout())
    whole.set_epoch(3)
    order.set_epoch(3)
    assert list(order) == list(whole)[4:]
    assert len(order) == 6
    whole.set_epoch(4)
    order.set_epoch(4)
    assert list(order) == list(whole)


def test_resume_refuses_another_layout():
    order = TrainingOrder(11, 2, seed=1)
    with pytest.raises(ValueError, match=r"middle of an epoch with .*'batch_size': 3.*this run has .*'batch_size': 2"):
        order.resume(0, 4, num_rows=11, batch_size=3, seed=1, num_replicas=1)
    order.resume(1, 0, num_rows=11, batch_size=3, seed=1, num_replicas=1)  # at an epoch's start anything may change


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize(("num_rows", "batch_size"), [(11, 2), (12, 4), (5, 1), (9, 100)])
def test_evaluation_order_shows_every_row_once_in_equally_many_batches(num_rows, batch_size, num_replicas):
    orders = [EvaluationOrder(num_rows, batch_size, rank, num_replicas) for rank in range(num_replicas)]
    batches = [list(order) for order in orders]
    assert sorted(row for some in batches for batch in some for row in batch) == list(range(num_rows))
    assert {len(some) for some in batches} == {len(orders[0])}
    assert all(0 < len(batch) <= max(batch_size, 2) for some in batches for batch in some)


def test_evaluation_order_needs_a_row_per_process():
    with pytest.raises(ValueError, match="1 rows, fewer than the 2 processes"):
        EvaluationOrder(1, 4, 0, 2)
