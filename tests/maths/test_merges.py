import torch

from dowser_pl.maths.merges import masked_move


def test_a_bool_mask_copies_bits():
    base, tuned = torch.tensor([0.1, -0.0, 1e-40]), torch.tensor([0.2, 0.0, 7.0])
    merged = masked_move(base, tuned, torch.tensor([True, False, False]))
    assert torch.equal(merged.view(torch.int32), torch.stack([tuned[0], base[1], base[2]]).view(torch.int32))


def test_a_soft_mask_interpolates():
    merged = masked_move(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0]), torch.tensor([0.25, 1.0]))
    assert torch.equal(merged, torch.tensor([1.5, 3.0]))
