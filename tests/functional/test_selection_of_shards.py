"""The exact selection among parts of matrices that lie on several processes; threads stand in for these."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from dowser_pl.functional.selection import lowest, lowest_of_pieces


class Threads:
    """What one of several threads counts, put together with what the others do."""

    def __init__(self, rank, ranks, barrier, board):
        self.rank, self.ranks, self.barrier, self.board = rank, ranks, barrier, board

    def _all(self, value):
        self.board[self.rank] = value
        self.barrier.wait(10)
        values = [self.board[rank] for rank in range(self.ranks)]
        self.barrier.wait(10)
        return values

    def all_reduce(self, counts):
        return sum(self._all(counts.clone()))

    def exclusive_sum(self, count):
        counts = self._all(count)
        return sum(counts[: self.rank]), sum(counts)


def selected(matrices, k, ranks):
    """Masks of whole matrices, from those of their rows."""
    barrier, board = Barrier(ranks), {}

    def work(rank):
        pieces = [lambda m=m: torch.tensor_split(m, ranks)[rank] for m in matrices]
        return list(lowest_of_pieces(pieces, k, Threads(rank, ranks, barrier, board)))

    with ThreadPoolExecutor(ranks) as pool:
        parts = list(pool.map(work, range(ranks)))
    return [torch.cat([part[number] for part in parts]) for number in range(len(matrices))]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("k", [0, 1, 37, 100, 126])
def test_rows_on_several_processes_are_selected_as_in_one(ranks, k):
    """Scores of five values, so that most entries tie at the threshold; one matrix has fewer rows than processes."""
    random = torch.Generator().manual_seed(k)
    matrices = [torch.randint(0, 5, (rows, 9), generator=random).float() for rows in (7, 5, 2)]
    expected = lowest(torch.cat([m.flatten() for m in matrices]), k)
    found = selected(matrices, k, ranks)
    assert torch.equal(torch.cat([mask.flatten() for mask in found]), expected)
    assert int(expected.sum()) == k


def test_one_matrix_alone():
    matrix = torch.zeros(4, 6)
    (mask,) = selected([matrix], 10, 2)
    assert torch.equal(mask, lowest(matrix, 10))
