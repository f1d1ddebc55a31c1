import pytest

from dowser_pl.callbacks.predictions import in_turns
from dowser_pl.data.loaders import EvaluationSampler


@pytest.mark.parametrize(
    ("rows", "processes", "batch_size"), [(10, 3, 2), (4, 3, 1), (5, 1, 4), (12, 4, 3), (11, 4, 1)]
)
def test_shares_come_together_in_the_order_of_the_questions(rows, processes, batch_size):
    shares = [
        [{"id": row} for batch in EvaluationSampler(rows, batch_size, rank, processes) for row in batch]
        for rank in range(processes)
    ]
    assert in_turns(shares) == [{"id": row} for row in range(rows)]
