"""One thread: matrices are tiny, and threads that wait for each other on a busy machine cost minutes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # of those that take more threads, beside the other worker

import torch

torch.set_num_threads(1)
