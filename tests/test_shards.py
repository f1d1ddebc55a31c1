"""What processes do with tensors that are spread over them, as far as one process shows it."""

import threading

import pytest
import torch

from dowser_pl import shards


def test_the_next_tensor_is_put_together_while_one_is_hashed(monkeypatch):
    """Else all processes would wait for each hash, one after the other."""
    asked = threading.Event()

    def parts():
        yield "first", torch.zeros(2), None
        asked.set()
        yield "second", torch.ones(2), None

    monkeypatch.setattr(shards, "digest", lambda tensor: f"{tensor.tolist()} {asked.wait(5)}")
    assert shards.digests_in_turns(parts()) == {"first": "[0.0, 0.0] True", "second": "[1.0, 1.0] True"}


def test_what_fails_while_hashing_is_raised(monkeypatch):
    monkeypatch.setattr(shards, "digest", lambda tensor: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        shards.digests_in_turns([("first", torch.zeros(2), None), ("second", torch.zeros(2), None)])
