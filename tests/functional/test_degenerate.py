import pytest
import torch

from dowser_pl.functional.degenerate import is_degenerate


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([], True),
        ([5], False),
        ([5] * 7, False),  # a short answer
        ([5] * 8, True),
        ([5, 6] * 6, True),
        ([5, 6, 7, 8] * 6, True),
        (list(range(12)), False),
        ([1, 2, 1, 3, 1, 4, 1, 5, 1, 6], False),
    ],
)
def test_empty_and_repeated_texts_are_degenerate(written, expected):
    assert is_degenerate(torch.tensor(written, dtype=torch.int64)) is expected


def test_the_bound_is_a_share_of_distinct_pairs():
    written = torch.tensor([1, 2, 1, 2, 1, 2, 3, 4, 5])  # pairs: 12 21 12 21 12 23 34 45, five of eight distinct
    assert not is_degenerate(written, 5 / 8)
    assert is_degenerate(written, 5 / 8 + 1e-6)
