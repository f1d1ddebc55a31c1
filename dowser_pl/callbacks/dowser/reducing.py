"""Gradients of several processes, averaged where trainable entries are a parameter of their own.

DistributedDataParallel averages the gradient of each matrix after the entries were gathered from it, too late. So it
is told to leave gradients alone, and those of the optimizer's parameters are averaged instead: a tenth of the traffic
at update ratio 0.1.
"""

import torch.distributed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

__all__ = ["reduce_gradients", "stop_reducing"]


def stop_reducing(trainer: Trainer) -> None:
    """Let no wrapper average gradients by itself."""
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy.model.require_backward_grad_sync = False  # type: ignore[union-attr]


def reduce_gradients(trainer: Trainer) -> None:
    """Average the gradients of all processes, once those of an optimizer step are complete.

    Strategies that spread weights over the processes have done so already.
    """
    if trainer.world_size == 1 or hasattr(trainer.strategy, "shard") or trainer.fit_loop._should_accumulate():
        return
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    used = torch.tensor([parameter.grad is not None for parameter in parameters], device=parameters[0].device).int()
    torch.distributed.all_reduce(used)
    for parameter, anywhere in zip(parameters, used.tolist(), strict=True):
        if not anywhere:  # as in one process: no gradient, no step
            continue
        if parameter.grad is None:  # its part of the model had nothing to do in this process' batch
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= trainer.world_size
