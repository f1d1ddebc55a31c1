import pytest
import torch

from dowser_pl.functional.masks import from_rows, jaccard, num_trainable, pack, to_rows, unpack


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


@pytest.mark.parametrize("shape", [(0, 3), (4, 1), (3, 8), (5, 11), (2, 24)])
def test_rows_of_bits_can_be_cut(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.3
    rows = to_rows(pack(mask), shape)
    assert rows.shape == (shape[0], -(-shape[1] // 8))
    for row, each in zip(rows, mask, strict=True):
        assert torch.equal(row, pack(each))
    for cut in (slice(0, None), slice(1, 3)):
        assert torch.equal(from_rows(rows[cut], shape[1]), pack(mask[cut]))


def test_jaccard_by_hand():
    first = torch.tensor([True, True, False, False])
    second = torch.tensor([True, False, True, False])
    assert jaccard(first, second) == pytest.approx(1 / 3)
    assert jaccard(first, first) == 1.0
    assert jaccard(~first & first, first & ~first) == 1.0
