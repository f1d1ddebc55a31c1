"""Lightning's FSDP2 strategy with what sharded training of entries needs beside it, and how a model is cut for it.

Every decoder layer is gathered when it runs and let go of afterwards. All else (embeddings, head, norms, vision tower,
projector) is one group, gathered for the whole of a forward or backward pass: so all processes gather the same things
whether or not there is an image in their batch, and none waits for another for ever.
"""

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import PreTrainedModel

from dowser_pl.distributed import collectives
from dowser_pl.distributed.collectives import all_reduce_counts, broadcast
from dowser_pl.distributed.models import device_of
from dowser_pl.distributed.tensors import shard_like, to_local
from dowser_pl.errors import DowserError
from dowser_pl.models.layers import decoder_layers, text_model
from dowser_pl.strategies.sharded import Dtype, ShardedStrategy, patience

__all__ = [
    "FSDP2Strategy",
    "fully_shard_model",
]


def fully_shard_model(
    model: PreTrainedModel,
    mesh: DeviceMesh,
    param_dtype: torch.dtype | None = None,
    reduce_dtype: torch.dtype | None = None,
    cpu_offload: bool = False,
) -> None:
    """Shard the weights over a 1-D mesh, in place; tied weights stay tied.

    Args:
        model: whole, the same on every process; or whole on the first and on the meta device of the others, which
            then get their rows from it, one tensor at a time.
        mesh: of the processes.
        param_dtype: that weights are gathered and used in; None = their own.
        reduce_dtype: that gradients are averaged in; None = that of the gathered weights.
        cpu_offload: keep what a process holds in host memory.

    Raises:
        DowserError: if embeddings are to be trained that the model uses outside of its text part.
    """
    scalars = {weight for weight in model.parameters() if weight.dim() == 0}
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=param_dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False
        ),
        "offload_policy": CPUOffloadPolicy(pin_memory=False) if cpu_offload else OffloadPolicy(),
        "reshard_after_forward": True,  # the outermost group too: between steps every process holds its share alone
        "ignored_params": scalars,
    }
    empty_elsewhere = any(all_reduce_counts([any(weight.is_meta for weight in model.parameters())]))
    whole = {name: weight.detach() for name, weight in model.named_parameters()} if empty_elsewhere else {}
    text = text_model(model)
    if text is not model and any(weight.requires_grad for weight in text.get_input_embeddings().parameters()):
        raise DowserError(
            f"got trained embeddings in a {type(model).__name__}, expected frozen ones: it uses them outside of its "
            "text part, where FSDP2 would miss their gradient. Leave embeddings (and a head that is tied to them) out "
            "of model.also_train, or use -c strategy/fsdp1 or -c strategy/ddp"
        )
    for layer in decoder_layers(model):
        fully_shard(layer, **options)
    if text is not model:
        part: Any = fully_shard(text, **options)
        # InstructBLIP and BLIP-2 look tokens up in the table of the text part before they run it
        model.register_forward_pre_hook(lambda *_: part.unshard() and None)
    root: Any = fully_shard(model, **options)
    if empty_elsewhere:
        _fill(model, whole, torch.device("cpu") if cpu_offload else device_of(model))
    root._get_fsdp_state()._lazy_init()  # now: prompts are written by a part of the model, which is not to be the root


@torch.no_grad()
def _fill(model: PreTrainedModel, whole: dict[str, Tensor], device: torch.device) -> None:
    """Give every process its rows of what the first has, and all buffers."""
    if collectives.rank() > 0:
        model.to_empty(device=device)
        model.tie_weights()
    for name, weight in model.named_parameters():
        sent = whole.pop(name) if collectives.rank() == 0 else torch.empty(weight.shape, dtype=weight.dtype)
        to_local(weight).copy_(shard_like(broadcast(sent), weight))
    for buffer in model.buffers():
        buffer.copy_(broadcast(buffer))


class FSDP2Strategy(ShardedStrategy, ModelParallelStrategy):
    """Spreads weights, gradients, entries and moments over all processes (PyTorch's `fully_shard`).

    Args:
        param_dtype: that weights are gathered and used in; null = their own.
        reduce_dtype: that gradients are averaged in; null = that of the gathered weights.
        cpu_offload: keep in host memory what a process holds, with moments and optimizer steps.
        timeout_minutes: that a process waits for the others, as while the first reads or writes a large model.
        save_distributed_checkpoint: every process writes its share into a folder, instead of the first all of it into
            a file. Either is read whatever this says.
    """

    def __init__(
        self,
        param_dtype: Dtype | None = None,
        reduce_dtype: Dtype | None = None,
        cpu_offload: bool = False,
        timeout_minutes: float = 60.0,
        save_distributed_checkpoint: bool = False,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            timeout=patience(timeout_minutes),
        )
        self.param_dtype = param_dtype
        self.reduce_dtype = reduce_dtype
        self.cpu_offload = cpu_offload

    @property
    def saves_sharded(self) -> bool:
        """Whether `save_distributed_checkpoint` was asked for."""
        return self._save_distributed_checkpoint

    def setup_environment(self) -> None:
        """Let every process share the weights."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, network: Any) -> None:
        """Shard a model that is here as a whole."""
        param, reduce = (name and getattr(torch, name) for name in (self.param_dtype, self.reduce_dtype))
        fully_shard_model(network, self.device_mesh["data_parallel"], param, reduce, self.cpu_offload)

    def model_to_device(self) -> None:
        """Sharding has moved the weights already, to where they are to be kept."""
        module: Any = self.model
        self.move_buffers()
        if self.cpu_offload:
            module._device = self.root_device  # where metrics and batches belong
        else:
            module.to(self.root_device)


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="weights, entries and moments sharded over all devices")
