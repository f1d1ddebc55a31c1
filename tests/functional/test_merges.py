import pytest
import torch

from dowser_pl.functional.merges import masked_move, mean_of_moves, sum_of_moves


def test_a_bool_mask_copies_bits():
    base, tuned = torch.tensor([0.1, -0.0, 1e-40]), torch.tensor([0.2, 0.0, 7.0])
    merged = masked_move(base, tuned, torch.tensor([True, False, False]))
    assert torch.equal(merged.view(torch.int32), torch.stack([tuned[0], base[1], base[2]]).view(torch.int32))


def test_a_soft_mask_interpolates():
    merged = masked_move(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0]), torch.tensor([0.25, 1.0]))
    assert torch.equal(merged, torch.tensor([1.5, 3.0]))


def test_sum_and_mean_of_moves_by_hand():
    base = torch.tensor([1.0, 1.0, 1.0, -0.0])
    tuned = [torch.tensor([2.0, 5.0, 9.0, 4.0]), torch.tensor([0.0, 3.0, 9.0, 4.0])]
    masks = [torch.tensor([True, True, False, False]), torch.tensor([True, False, False, False])]
    assert sum_of_moves(base, tuned, masks, 2.0).tolist() == [1.0, 9.0, 1.0, 0.0]
    assert mean_of_moves(base, tuned, masks, 2.0).tolist() == [1.0, 9.0, 1.0, 0.0]
    masks[1][1] = True
    assert sum_of_moves(base, tuned, masks).tolist() == [1.0, 7.0, 1.0, 0.0]
    assert mean_of_moves(base, tuned, masks).tolist() == [1.0, 4.0, 1.0, 0.0]
    assert sum_of_moves(base, tuned, masks)[3].signbit(), "untouched entries keep their bits"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("function", [sum_of_moves, mean_of_moves])
def test_whole_moves_and_none_copy_bits(function, dtype):
    base = (10.0 ** torch.linspace(-6, 4, 41)).to(dtype)
    tuned = (-(10.0 ** torch.linspace(4, -6, 41))).to(dtype)  # adding the difference to the base would round
    mask = torch.arange(41) % 2 == 0
    assert torch.equal(function(base, [tuned, base], [mask, mask & False]), torch.where(mask, tuned, base))
    assert torch.equal(function(base, [tuned], [mask], 0.0), base)
    assert function(base, [tuned], [mask], 0.3).dtype == dtype


def test_half_precision_is_rounded_once():
    base, tuned = torch.tensor([1.0]).bfloat16(), torch.tensor([1.0 + 2**-7]).bfloat16()
    moved = sum_of_moves(base, [tuned] * 3, [torch.tensor([True])] * 3, 0.9)
    assert moved.item() == torch.tensor(1 + 2.7 * 2**-7).bfloat16().item() == 1 + 3 * 2**-7
