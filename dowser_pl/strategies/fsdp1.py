"""Lightning's FSDP1 strategy with what sharded training of entries needs beside it; FSDP2 is the recommended one.

Lightning restores checkpoints of FSDP1 after training is set up, saves whole matrices, and knows no clipping by norm;
all of that is as in `strategies.py` here. Its precision differs too: see :class:`AutocastPrecision`.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import FSDPPrecision
from lightning.pytorch.strategies import FSDPStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn

from dowser_pl.distributed.models import spread_model
from dowser_pl.strategies.flat_sharded import flat_shard_model
from dowser_pl.strategies.sharded import Dtype, ShardedStrategy, patience

__all__ = ["FSDP1Strategy"]


class FSDP1Strategy(ShardedStrategy, FSDPStrategy):
    """Spreads weights, gradients, entries and moments over all processes (``FullyShardedDataParallel``).

    Args:
        reduce_dtype: that gradients are averaged in; null = that of the weights.
        timeout_minutes: that a process waits for the others, as while the first reads or writes a large model.
    """

    def __init__(self, reduce_dtype: Dtype | None = None, timeout_minutes: float = 60.0) -> None:
        super().__init__(timeout=patience(timeout_minutes))
        self.reduce_dtype = reduce_dtype

    @property
    def precision_plugin(self) -> FSDPPrecision:
        """That of :class:`AutocastPrecision`, in Lightning's stead."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Any) -> None:
        own = AutocastPrecision(plugin.precision, self) if type(plugin) is FSDPPrecision else plugin
        FSDPStrategy.precision_plugin.fset(self, own)  # type: ignore[attr-defined]

    def shard(self, network: Any) -> None:
        """Spread a model that is here as a whole; or on the first process, and elsewhere on the meta device."""
        if self.world_size == 1:  # FSDP1 would not cut it either, and hide its weights between steps
            return
        flat_shard_model(network, self.root_device, self.reduce_dtype and getattr(torch, self.reduce_dtype))

    def setup(self, trainer: Trainer) -> None:
        """The model was spread as soon as it was loaded, in the precision it has."""
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model_to_device()
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def model_to_device(self) -> None:
        """Sharding has moved the weights already; buffers and metrics follow."""
        module: Any = self.lightning_module
        if not spread_model(module):
            module.to(self.root_device)
            return
        self.move_buffers()
        for child in module.children():
            if child is not module.model:
                child.to(self.root_device)
        module._device = self.root_device  # where batches belong


class AutocastPrecision(FSDPPrecision):
    """As under every other strategy.

    Lightning lets FSDP1 itself compute bf16-mixed, in bfloat16 throughout; autocast keeps some of it in float32, and
    the numbers of one process are those of autocast.
    """

    def __init__(self, precision: Any, strategy: FSDP1Strategy) -> None:
        super().__init__(precision)
        self._strategy = strategy

    def clip_grad_by_norm(self, *arguments: Any, **options: Any) -> None:
        """As everywhere, where one process has all gradients; several have a way of their own."""
        super(FSDPPrecision, self).clip_grad_by_norm(*arguments, **options)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast, on the device that computes."""
        if self.precision != "bf16-mixed":
            return super().forward_context()
        device = self._strategy.root_device.type
        return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)


StrategyRegistry.register("fsdp1", FSDP1Strategy, description="as fsdp2, by FSDP1; fsdp2 is the better choice")
