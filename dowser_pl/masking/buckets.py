"""DistributedDataParallel without buffers for gradients that it is not to average."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["leave_out_of_buckets"]


def leave_out_of_buckets(module: nn.Module) -> None:
    """Have DistributedDataParallel ignore all that is trained, but for one small tensor.

    It allocates buckets as large as all gradients when it wraps a module, and refuses one without any. What it ignores
    it does not send to the other processes either: they must have loaded the same weights. To be called before.
    """
    trained = sorted((each.numel(), name) for name, each in module.named_parameters() if each.requires_grad)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, [name for _, name in trained[1:]])
