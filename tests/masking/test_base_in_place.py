"""The base in the place of tuned entries for a while, in every form, and afterwards every bit as it was."""

import pytest
import torch
from torch import nn

from dowser_pl.functional.null_space import Directions
from dowser_pl.masking import CompactEntries, DenseEntries, ProjectedEntries, SoftEntries
from dowser_pl.methods import L2SP, NullSpace

NULL = Directions(torch.eye(6)[:, :2].contiguous(), torch.tensor([0.9, 0.5]))


def dense(weights, masks):
    return DenseEntries(weights, masks)


def compact(weights, masks):
    return CompactEntries(weights, masks)


def whole(weights, masks):
    return CompactEntries(weights, {name: torch.ones_like(mask) for name, mask in masks.items()})


def soft(weights, masks):
    return SoftEntries(weights, L2SP(0.1), {})


def offset(weights, masks):
    return SoftEntries(weights, NullSpace(), {}, dict.fromkeys(weights, NULL))


def projected(weights, masks):
    return ProjectedEntries(weights, {"a": NULL})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [dense, compact, whole, soft, offset, projected])
def test_every_bit_is_the_base_meanwhile_and_what_it_was_afterwards(form, dtype):
    generator = torch.Generator().manual_seed(0)
    weights = {name: nn.Parameter(torch.randn(5, 6, generator=generator).to(dtype)) for name in "ab"}
    masks = {name: torch.rand(5, 6, generator=generator) < 0.3 for name in "ab"}
    base = {name: weight.detach().clone() for name, weight in weights.items()}
    entries = form(weights, masks)
    optimizer = torch.optim.AdamW(entries.parameters(), lr=0.1)
    for _ in range(3):
        sum((weight.float() ** 3).sum() for weight in weights.values()).backward()
        entries.mask_gradients()
        optimizer.step()
        entries.after_step()
        optimizer.zero_grad()
    tuned = {name: weight.detach().clone() for name, weight in weights.items()}
    trained = [each.detach().clone() for each in entries.parameters()]
    names = "b" if form is projected else "ab"  # of an adapter, whose A is projected from the start, B is what counts
    with pytest.raises(KeyError), entries.base_in_place():
        for name in names:
            assert torch.equal(weights[name], base[name]) and not torch.equal(weights[name], tuned[name])
        raise KeyError
    for name, weight in weights.items():
        assert torch.equal(weight, tuned[name]) and weight.grad is None
    assert all(torch.equal(one, other) for one, other in zip(entries.parameters(), trained, strict=True))
