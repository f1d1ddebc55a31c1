import torch
from torch import distributed
from tests.distributed.counting import Counting, CountSteps
from tests.distributed.fits import fit
from tests.distributed.harness import run
from tests.tiny_models import save_tiny_llava


def collectives():
    with Counting() as counting:
        distributed.all_reduce(torch.zeros(10))
        distributed.broadcast(torch.zeros(5), 0)
        distributed.all_gather([torch.zeros(3), torch.zeros(3)], torch.zeros(3))
        distributed.all_gather_into_tensor(torch.zeros(6), torch.zeros(3))
        distributed.reduce_scatter_tensor(torch.zeros(3), torch.zeros(6))
        distributed.barrier()
    return counting.traffic

def counted(folder, model, **options):
    with Counting() as counting:
        steps = CountSteps(counting)
        fit(folder, model, callbacks=(steps,), max_epochs=1, **options)
    return steps.batches, counting.traffic

def test_a(tmp_path):
    print("X", run(collectives))
    m = save_tiny_llava(tmp_path/"m")
    print("X", run(counted, tmp_path/"r", m)[0])
    print("X", run(counted, tmp_path/"r2", m, update="dense")[0])
