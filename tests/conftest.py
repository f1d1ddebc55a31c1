"""One thread: matrices are tiny, and threads that wait for each other on a busy machine cost minutes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # of those that take more threads, beside the other worker

import torch

torch.set_num_threads(1)

LONGEST = ("tests/docs/test_run.py", "tests/benchmarks/test_gpu_proof.py")  # one test of each takes minutes


def pytest_collection_modifyitems(items):
    """Those first, where files are taken in order: last, one worker would wait for the other."""
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in LONGEST)
