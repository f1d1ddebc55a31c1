"""What a null space holds beside training, against what its entries say that they hold."""

import pytest
import torch

from dowser_pl.functional.null_space import directions_of
from dowser_pl.masking import SoftEntries
from dowser_pl.methods import Anchor, Lora, MoFO, NullSpace, SoftDowser
from dowser_pl.planning import kept_by
from dowser_pl.planning.memory import Kept, Placement, Sizes, bytes_held, share_out
from dowser_pl.planning.optimizers import optimizer_kind

SHAPES = {"query": (6, 8), "value": (4, 8), "out": (8, 5)}


def made(dtype):
    return {name: torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for name, shape in SHAPES.items()}


def measured(shape, dtype):
    found = directions_of(torch.diag(torch.arange(1.0, shape[1] + 1)), 0.1, 6)
    return type(found)(found.vectors.to(dtype), found.shares)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [False, True])
def test_a_null_space_is_planned_as_it_is_held(dtype, shared):
    """Exact where no two matrices share an input; where some do, too much by what they share."""
    weights, method = made(dtype), NullSpace(rank=6)
    directions = {name: measured(shape, dtype) for name, shape in SHAPES.items()}
    if shared:
        directions["value"] = directions["query"]
    entries = SoftEntries(weights, method, {}, directions)
    held, total = entries.num_bytes(), sum(weight.numel() for weight in weights.values())
    matrices = share_out([(weight.numel(), weight.element_size()) for weight in weights.values()], total)
    weighed = Sizes({str(dtype): sum(weight.nbytes for weight in weights.values())}, matrices)
    kind = optimizer_kind(torch.optim.AdamW(entries.parameters()))
    plan = bytes_held(weighed, "compact", kind, kept=kept_by(method, weights.values(), dtype))
    assert plan.entries == held["values"] == 4 * total
    assert plan.base == held["base"] == total * dtype.itemsize
    twice = 6 * (8 * dtype.itemsize + 4) if shared else 0
    assert plan.kept == held["directions"] + twice
    two = bytes_held(weighed, "compact", kind, Placement("fsdp2", 2), kept=kept_by(method, weights.values(), dtype))
    assert two.kept == plan.kept and two.base == -(-plan.base // 2)  # directions are whole on every device


def test_all_directions_are_as_many_as_inputs_and_others_have_none():
    weights = [torch.empty(6, 8, device="meta")]
    all_of_them = kept_by(NullSpace(rank=None), weights, torch.float32)
    assert all_of_them == kept_by(NullSpace(rank=99), weights, torch.float32) == Kept(1, 0, True, 8 * (8 * 4 + 4))
    assert kept_by(Anchor(), weights, torch.float32) == Kept(1, 0)
    assert kept_by(SoftDowser(), weights, torch.float32) == Kept(1, 2)
    assert kept_by(MoFO(), weights, torch.float32) == Kept(1, 1)
    pair = [torch.empty(2, 8, device="meta"), torch.empty(6, 2, device="meta")]
    assert kept_by(Lora(preserve=3), pair, torch.bfloat16) == Kept(apart=True, shared=3 * (8 * 4 + 4) + 3 * (6 * 4 + 4))
