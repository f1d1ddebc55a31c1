import itertools

import pytest
import torch

from dowser_pl.functional import selection
from dowser_pl.functional.masks import num_trainable
from dowser_pl.functional.selection import (
    count_ties,
    find_threshold,
    highest,
    histogram,
    lowest,
    lowest_of_pieces,
    ordered_bits,
    reversed_order,
    signed_order,
    take,
)

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


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", SHAPES)
def test_highest_equals_a_stable_sort_downwards(shape, ratio):
    for name, scores in score_cases(shape).items():
        k = num_trainable(ratio, scores.numel())
        order = torch.sort(scores.float().flatten(), stable=True, descending=True).indices[:k]
        expected = torch.zeros(scores.numel(), dtype=torch.bool).index_fill(0, order, True).view(shape)
        assert torch.equal(highest(scores, k), expected), name


def test_reversed_order_reverses_and_keeps_ties_alone():
    for name, scores in score_cases((7, 13)).items():
        values, turned = scores.float().flatten(), reversed_order(scores).flatten()
        assert bool((turned >= 0).all()), name
        assert torch.equal(values[:, None] < values, turned[:, None] > turned), name
    with pytest.raises(ValueError, match="non-negative"):
        reversed_order(torch.tensor([-1.0]))


@pytest.mark.parametrize("widths", [selection._WIDTHS_ON_GPU, {0: 5, 5: 9, 14: 17}])
def test_lowest_is_the_same_however_the_bits_are_cut(monkeypatch, widths):
    expected = {name: lowest(scores, 50) for name, scores in score_cases((7, 13)).items()}
    monkeypatch.setattr(selection, "_WIDTHS", widths)
    for name, scores in score_cases((7, 13)).items():
        assert torch.equal(lowest(scores, 50), expected[name]), name
        shards = scores.flatten().tensor_split(3)
        pieces = list(lowest_of_pieces([lambda part=part: part for part in shards], 50))
        assert torch.equal(torch.cat(pieces).view(7, 13), expected[name]), name


def test_lowest_is_the_same_in_chunks_of_the_histogram(monkeypatch):
    scores = (torch.rand(50, 41, generator=torch.Generator().manual_seed(1)) * 9).floor()
    whole = lowest(scores, 333)
    monkeypatch.setattr("dowser_pl.functional.selection._CHUNK", 17)
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


def test_masks_of_rising_ratio_are_nested():
    scores = (torch.rand(31, 17, generator=torch.Generator().manual_seed(2)) * 20).floor()
    masks = [lowest(scores, k) for k in (0, 5, 50, 500, 527)]
    for smaller, larger in itertools.pairwise(masks):
        assert bool((larger | ~smaller).all())


@pytest.mark.parametrize("ratio", RATIOS)
def test_pieces_share_one_budget_and_no_score_is_kept(ratio):
    """Matrices that compete: equal to selecting from all of them at once, ties going to the earlier matrix."""
    for name in score_cases((1, 1)):
        pieces = [score_cases(shape)[name] for shape in SHAPES]
        together = torch.cat([piece.float().flatten() for piece in pieces])
        k = num_trainable(ratio, together.numel())
        expected = by_stable_sort(together, k).split([piece.numel() for piece in pieces])
        masks = list(lowest_of_pieces([lambda piece=piece: piece for piece in pieces], k))
        for piece, mask, wanted in zip(pieces, masks, expected, strict=True):
            assert mask.shape == piece.shape
            assert torch.equal(mask.flatten(), wanted), name


@pytest.mark.parametrize("cuts", [(0, 5, 5, 40, 91), (1, 2, 3, 4, 91), (91,)])
def test_shards_select_what_the_whole_matrix_selects(cuts):
    """Histograms summed over uneven shards (one of them empty) give the threshold; ties are counted off in order."""
    for name, scores in score_cases((7, 13)).items():
        shards = [ordered_bits(part) for part in scores.flatten().tensor_split(cuts)]
        for k in (0, 1, 9, 45, 91):
            threshold = find_threshold(lambda prefix, s=shards: sum(histogram(part, prefix) for part in s), k)
            before, masks = 0, []
            for shard in shards:
                masks.append(take(shard, threshold, before))
                before += count_ties(shard, threshold)
            assert torch.equal(torch.cat(masks).view(7, 13), by_stable_sort(scores, k)), (name, k)


def test_pieces_refuse_an_impossible_count():
    with pytest.raises(ValueError, match="cannot select 8 of 7"):
        list(lowest_of_pieces([lambda: torch.rand(3), lambda: torch.rand(4)], 8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_selects_what_the_cpu_selects():
    for name, scores in score_cases((640, 129)).items():
        k = num_trainable(0.1, scores.numel())
        assert torch.equal(lowest(scores.cuda(), k).cpu(), lowest(scores, k)), name


@pytest.mark.parametrize("shape", SHAPES)
def test_signed_order_sorts_as_the_numbers_do(shape):
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(shape, generator=generator) * torch.exp(20 * torch.randn(shape, generator=generator))
    order = signed_order(values)
    assert order.shape == values.shape and order.dtype == torch.float32 and bool((order >= 0).all())
    assert torch.equal(order.flatten()[values.flatten().argsort()], order.flatten().sort().values)
    assert len(order.unique()) == len(values.unique())


def test_signed_order_at_the_ends():
    inf, tiny, huge = float("inf"), 2.0**-149, 3.4028235e38
    ends = torch.tensor([-inf, -huge, -1.0, -2 * tiny, -0.0, 0.0, 2 * tiny, 1.0, huge, inf])
    order = signed_order(ends)
    assert order[0] == 0 and order[-1] == inf and order[4] == order[5]
    assert bool((order[1:] >= order[:-1]).all()) and len(order.unique()) == 9
    neighbours = signed_order(torch.tensor([1.0, 1.0 + 2**-23, 1.0 + 2**-22]))
    assert neighbours[0] == neighbours[1] < neighbours[2]
    with pytest.raises(ValueError, match="NaN"):
        signed_order(torch.tensor([1.0, float("nan")]))
