import itertools

import pytest
import torch

from dowser_pl.maths.masks import jaccard, lowest, num_trainable, pack, unpack

SHAPES = [(1, 1), (2, 3), (7, 13), (64, 129)]
RATIOS = [0.0, 1e-6, 0.1, 0.37, 0.999, 1.0]


def by_stable_sort(scores: torch.Tensor, k: int) -> torch.Tensor:
    order = torch.sort(scores.float().flatten(), stable=True).indices
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:k]] = True
    return mask.view(scores.shape)


def score_cases(shape):
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(shape, generator=generator)
    return {
        "uniform": uniform,
        "wide range": torch.exp(20 * torch.randn(shape, generator=generator)),
        "coarse ties": (uniform * 4).floor(),
        "half zeros": torch.where(uniform < 0.5, 0.0, uniform),
        "all equal": torch.full(shape, 0.3),
        "negative zero": torch.where(uniform < 0.5, -0.0, 0.0),
        "subnormal": uniform * 1e-42,
        "bfloat16": uniform.bfloat16(),
        "infinite": torch.where(uniform < 0.2, float("inf"), uniform),
    }


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", SHAPES)
def test_lowest_equals_a_stable_sort_with_the_exact_count(shape, ratio):
    for name, scores in score_cases(shape).items():
        k = num_trainable(ratio, scores.numel())
        mask = lowest(scores, k)
        assert mask.dtype == torch.bool and mask.shape == scores.shape
        assert int(mask.sum()) == k, name
        assert torch.equal(mask, by_stable_sort(scores, k)), name


def test_lowest_is_the_same_in_chunks_of_the_histogram(monkeypatch):
    scores = (torch.rand(50, 41, generator=torch.Generator().manual_seed(1)) * 9).floor()
    whole = lowest(scores, 333)
    monkeypatch.setattr("dowser_pl.maths.masks._CHUNK", 17)
    assert torch.equal(lowest(scores, 333), whole)


def test_lowest_of_a_transposed_view_breaks_ties_in_row_order():
    scores = torch.ones(3, 4).T
    assert torch.equal(lowest(scores, 4).nonzero(), torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0]]))


@pytest.mark.parametrize("bad", [float("nan"), -1e-3])
def test_lowest_refuses_scores_that_do_not_order(bad):
    with pytest.raises(ValueError, match="non-negative"):
        lowest(torch.tensor([0.1, bad, 0.2]), 1)


def test_lowest_refuses_an_impossible_count():
    with pytest.raises(ValueError, match="cannot select 4 of 3"):
        lowest(torch.rand(3), 4)


@pytest.mark.parametrize("ratio", [-0.1, 1.0001, float("nan"), float("inf")])
def test_update_ratio_must_be_a_share(ratio):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        num_trainable(ratio, 10)


def test_masks_of_rising_ratio_are_nested():
    scores = (torch.rand(31, 17, generator=torch.Generator().manual_seed(2)) * 20).floor()
    masks = [lowest(scores, k) for k in (0, 5, 50, 500, 527)]
    for smaller, larger in itertools.pairwise(masks):
        assert bool((larger | ~smaller).all())


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
