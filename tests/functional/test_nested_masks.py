"""Nested masks as levels."""

import pytest
import torch

from dowser_pl.functional.masks import left_out, up_to
from dowser_pl.functional.selection import lowest

OUTER = torch.tensor([[True, False, True], [True, True, False]])
INNER = torch.tensor([[False, False, True], [True, False, False]])


def test_by_hand():
    assert left_out(OUTER, INNER).tolist() == [True, False, False, True]
    levels = torch.tensor([2, 0, 1, 2], dtype=torch.uint8)  # of (0, 0), (0, 2), (1, 0), (1, 1)
    assert up_to(OUTER, levels, 0).tolist() == [[False, False, True], [False, False, False]]
    assert up_to(OUTER, levels, 1).tolist() == [[False, False, True], [True, False, False]]
    assert torch.equal(up_to(OUTER, levels, 2), OUTER)
    assert not up_to(OUTER, levels, -1).any()


def test_masks_that_are_not_nested_are_refused():
    with pytest.raises(ValueError, match="2 entries of the smaller mask are not in the larger one"):
        left_out(INNER, OUTER)


@pytest.mark.parametrize("seed", range(10))
def test_levels_give_every_mask_back(seed):
    random = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (5, 6), generator=random).float()  # many ties
    masks = [lowest(scores, size) for size in (0, 1, 7, 15, 30)]
    levels = sum(left_out(masks[-1], mask).to(torch.uint8) for mask in masks[:-1])
    for level, mask in enumerate(masks):
        assert torch.equal(up_to(masks[-1], levels, level), mask)
