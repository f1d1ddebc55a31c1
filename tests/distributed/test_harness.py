"""The harness itself: what ranks return and say arrives, and nothing outlives a call."""

import os
import signal
import sys
import time

import pytest
import torch
from torch import distributed

from tests.distributed.harness import RankError, alone, outcomes, run

_LEFT_OVER: list[int] = []


def sum_of_ranks(factor: int) -> tuple[int, int, float, int]:
    _LEFT_OVER.append(1)
    mine = torch.tensor(float(factor * (distributed.get_rank() + 1)))
    distributed.all_reduce(mine)
    return distributed.get_rank(), os.getpid(), mine.item(), len(_LEFT_OVER)


def fails_on(rank: int) -> None:
    if distributed.get_rank() == rank:
        raise KeyError("the reason")
    distributed.barrier()


def hangs_on(rank: int) -> int:
    sys.stdout.write(f"I am {os.getpid()}\n")
    sys.stdout.flush()
    while distributed.get_rank() == rank:
        time.sleep(1)
    return os.getpid()


def dies_on(rank: int) -> str:
    if distributed.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def lonely() -> tuple[bool, str | None]:
    return distributed.is_initialized(), os.environ.get("WORLD_SIZE")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_hands_back_its_result_and_starts_afresh(ranks):
    first, second = run(sum_of_ranks, 10, ranks=ranks), run(sum_of_ranks, 10, ranks=ranks)
    for results in (first, second):
        assert [result[0] for result in results] == list(range(ranks))
        assert {result[2] for result in results} == {10.0 * sum(range(1, ranks + 1))}
        assert {result[3] for result in results} == {1}
    assert len({result[1] for result in first + second}) == 2 * ranks


def test_one_process_has_no_group():
    assert alone(lonely) == (False, None)


def test_the_failing_rank_is_named_with_its_traceback_and_first():
    with pytest.raises(RankError) as error:
        run(fails_on, 1)
    message = str(error.value)
    assert message.startswith("rank 1 failed") and "fails_on" in message and "the reason" in message


def test_a_rank_that_dies_is_named_and_the_other_one_told_apart():
    ended = outcomes(dies_on, 1)
    assert (ended[0].value, ended[0].returned) == ("alive", True)
    assert (ended[1].status, ended[1].returned) == (-signal.SIGKILL, False)


@pytest.mark.slow
def test_a_rank_that_hangs_is_killed():
    ended = outcomes(hangs_on, 1, seconds=5)
    assert ended[0].returned and ended[1].status is None
    pid = int(ended[1].output.split()[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(RankError, match="rank 1 was not done in time"):
        run(hangs_on, 1, seconds=0.5)
