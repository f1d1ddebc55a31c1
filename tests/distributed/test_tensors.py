"""What processes do with tensors that are sharded over them, as far as one process shows it."""

import threading

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dowser_pl.distributed import tensors


def test_the_next_tensor_is_put_together_while_one_is_hashed(monkeypatch):
    """Else all processes would wait for each hash, one after the other."""
    asked = threading.Event()

    def parts():
        yield "first", torch.zeros(2), None
        asked.set()
        yield "second", torch.ones(2), None

    monkeypatch.setattr(tensors, "digest", lambda tensor: f"{tensor.tolist()} {asked.wait(5)}")
    assert tensors.digests_in_turns(parts()) == {"first": "[0.0, 0.0] True", "second": "[1.0, 1.0] True"}


def test_what_fails_while_hashing_is_raised(monkeypatch):
    monkeypatch.setattr(tensors, "digest", lambda tensor: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        tensors.digests_in_turns([("first", torch.zeros(2), None), ("second", torch.zeros(2), None)])


@pytest.fixture
def sharded():
    """A matrix that is sharded over one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distribute_tensor(torch.arange(6.0).view(3, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
    distributed.destroy_process_group()


def test_rows_are_put_together_where_they_can_be_sent(monkeypatch, sharded):
    """With `cpu_offload` they are kept in host memory, from which NCCL does not send."""
    monkeypatch.setattr(tensors, "to_be_sent", lambda rows: rows.double())  # as another device would, it shows
    assert tensors.full_tensor(sharded).dtype == torch.float64
    assert torch.equal(tensors.full_tensor(sharded), torch.arange(6.0, dtype=torch.float64).view(3, 2))
