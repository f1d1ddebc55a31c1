import itertools

import pytest
import torch

from dowser_pl.functional.merges import agreeing


def test_by_hand():
    base = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    tuned = [
        base + torch.tensor(move) for move in ([3.0, 1.0, -1.0, 0.0], [-1.0, -1.0, -2.0, 0.0], [1.0, 0.0, 5.0, 0.0])
    ]
    masks = [torch.ones(1, 4, dtype=torch.bool)] * 3
    # sums 3, 0, 2, 0
    kept = agreeing(base, tuned, masks)
    assert [each.tolist() for each in kept] == [
        [[True, False, False, False]],
        [[False, False, False, False]],
        [[True, False, True, False]],
    ]
    # most of the row goes up, so the second entry does too
    assert [each.tolist()[0][1] for each in agreeing(base, tuned, masks, True)] == [True, False, False]
    masks = [torch.tensor([[False, True, True, True]]), *masks[1:]]
    # without the first model's 3 the sum of the first entry is 0
    assert [each.tolist()[0][0] for each in agreeing(base, tuned, masks)] == [False, False, False]


@pytest.mark.parametrize("majority", [False, True])
def test_against_a_loop(majority):
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(-2, 3, (6, 7), generator=generator).float()
    moves = torch.randint(-2, 3, (4, 6, 7), generator=generator).float()
    masks = torch.rand((4, 6, 7), generator=generator) < 0.6
    signs = {}
    for i, j in itertools.product(range(6), range(7)):
        total = sum(float(moves[t, i, j]) for t in range(4) if masks[t, i, j])
        signs[i, j] = (total > 0) - (total < 0)
    balance = sum(signs.values())
    kept = agreeing(base, list(base + moves), list(masks), majority)
    for (i, j), sign in signs.items():
        elected = (balance > 0) - (balance < 0) if majority and sign == 0 else sign
        for t in range(4):
            move = float(moves[t, i, j]) if masks[t, i, j] else 0.0
            assert bool(kept[t][i, j]) == (move != 0 and (move > 0) == (elected > 0) and elected != 0)
    assert any(sign == 0 for sign in signs.values())
