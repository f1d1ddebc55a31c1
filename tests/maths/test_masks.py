import pytest
import torch

from dowser_pl.maths.masks import jaccard, num_trainable, pack, unpack


@pytest.mark.parametrize("ratio", [-0.1, 1.0001, float("nan"), float("inf")])
def test_update_ratio_must_be_a_share(ratio):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        num_trainable(ratio, 10)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (3, 3), (8, 8), (5, 7, 3)])
def test_pack_and_unpack_are_inverse(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.3
    bits = pack(mask)
    assert bits.dtype == torch.uint8 and bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack(bits, mask.shape), mask)


def test_unpack_refuses_another_shape():
    with pytest.raises(ValueError, match="needs 3 bytes, got 2"):
        unpack(pack(torch.ones(9, dtype=torch.bool)), (4, 6))


def test_jaccard_by_hand():
    first = torch.tensor([True, True, False, False])
    second = torch.tensor([True, False, True, False])
    assert jaccard(first, second) == pytest.approx(1 / 3)
    assert jaccard(first, first) == 1.0
    assert jaccard(~first & first, first & ~first) == 1.0
