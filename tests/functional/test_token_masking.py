"""Selective token masking: a batch by hand, and what holds for any."""

import math

import pytest
import torch

from dowser_pl.functional.token_masking import unexpected


def says(*probabilities: float) -> torch.Tensor:
    """Logits over two tokens, of which the first has these probabilities."""
    return torch.tensor([[math.log(p), math.log(1 - p)] for p in probabilities])


def test_by_hand():
    """Perplexities 2, 4, 1.25 | 10, 5, 5 | 2.6 of three rows; of the second the first of the least is kept."""
    logits = says(0.5, 0.25, 0.8, 0.1, 0.2, 0.2, 1 / 2.6)
    rows = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    found = unexpected(logits, torch.zeros(7, dtype=torch.long), rows, 2.5)
    assert found.tolist() == [False, True, False, True, False, True, False]
    others = unexpected(logits, torch.ones(7, dtype=torch.long), rows, 2.5)  # perplexities 2, 1.3, 5 | 1.1, 1.25 ...
    assert others.tolist() == [False, False, True, False, False, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [7, 2**21])  # all at a time, and in chunks of four
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_any_batch_against_probabilities(vocabulary, dtype):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (torch.randn(11, vocabulary, generator=generator) * 3).to(dtype)
    tokens = torch.randint(7, (11,), generator=generator)
    logits[torch.arange(11), tokens] += math.log(vocabulary) + 2
    rows = torch.tensor([0, 0, 0, 0, 1, 1, 1, 3, 3, 4, 4])
    chances = logits.double().softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    before = torch.ones(11, dtype=torch.bool)
    for limit in (1.0, 1.2, 2.0, 4.0, 20.0, 1e9):
        found = unexpected(logits, tokens, rows, limit)
        assert not (found & ~before).any()  # what is learnt at a limit is learnt at a larger one
        before = found
        for row in (0, 1, 3, 4):
            at = rows == row
            above = chances[at] < 1 / limit
            kept = chances[at].argmax()
            expected = above & ~(above.all() & (torch.arange(len(above)) == kept))
            assert found[at].tolist() == expected.tolist(), (limit, row)
    assert not before.any()
