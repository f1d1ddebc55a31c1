"""Lightning's FSDP1 strategy with what sharded training of entries needs beside it; FSDP2 is the recommended one.

Lightning restores checkpoints of FSDP1 after training is set up, saves whole matrices, and knows no clipping by norm;
all of that is as in `sharded.py` here. Its precision differs too: see `AutocastPrecision`. Units are those of
`fsdp2.py`: every decoder layer, and all else as one that is gathered for the whole of a forward or backward pass.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import FSDPPrecision
from lightning.pytorch.strategies import FSDPStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
from transformers import PreTrainedModel

from dowser_pl.distributed import collectives
from dowser_pl.distributed.collectives import all_reduce_counts, broadcast
from dowser_pl.distributed.fsdp1_unit import FSDP1Model, Unit
from dowser_pl.distributed.models import is_sharded_model
from dowser_pl.distributed.tensors import FlatShard, flat_shard_of, put_flat_shard
from dowser_pl.errors import DowserError
from dowser_pl.models.layers import decoder_layers, text_model
from dowser_pl.strategies.sharded import Dtype, ShardedStrategy, patience

__all__ = ["FSDP1Strategy", "flat_shard_model"]


def flat_shard_model(
    model: PreTrainedModel,
    device: torch.device,
    reduce_dtype: torch.dtype | None = None,
) -> None:
    """Shard the weights over all processes, in place; tied weights stay tied.

    Args:
        model: whole, the same on every process; or whole on the first and on the meta device of the others, which
            then get their pieces from it, one unit at a time.
        device: that computes and keeps the pieces.
        reduce_dtype: that gradients are averaged in; None = that of the weights.

    Raises:
        DowserError: if weights of one unit are of several precisions.
    """
    text: nn.Module = text_model(model)
    empty_elsewhere = any(all_reduce_counts([any(weight.is_meta for weight in model.parameters())]))
    if empty_elsewhere:
        _fill_buffers(model, device)
        _fill(model, [weight for weight in model.parameters() if weight.dim() == 0], device)
    done = {weight for weight in model.parameters() if weight.dim() == 0}  # not sharded
    options: dict[str, Any] = {
        "device_id": device,
        "use_orig_params": True,  # some of a unit's weights are trained and some are not
        "ignored_states": set(done),
        "mixed_precision": MixedPrecision(
            reduce_dtype=reduce_dtype, cast_forward_inputs=False, cast_root_forward_inputs=False
        ),
    }
    layers = decoder_layers(model)
    units: list[Unit] = []
    for number, layer in enumerate(layers):
        units.append(_unit(layer, done, empty_elsewhere, options))
        layers[number] = units[-1]
    root = _unit(model, done, empty_elsewhere, options)
    for scalar in options["ignored_states"]:
        scalar.data = scalar.data.to(device)
    _put_places([*units, root])
    model._fsdp1_model = text._fsdp1_model = FSDP1Model(model, root, units)  # type: ignore[assignment]
    model.register_state_dict_post_hook(_with_places)
    with FullyShardedDataParallel.summon_full_params(root, recurse=False, writeback=False):
        pass  # makes it the root: prompts are written by a part of the model, which is not to be the root


def _unit(module: nn.Module, done: set[nn.Parameter], empty_elsewhere: bool, options: dict[str, Any]) -> Unit:
    """The module cut into pieces, but for the weights in `done`, which then has all of its weights."""
    if empty_elsewhere:
        _fill(module, [weight for weight in module.parameters() if weight not in done], options["device_id"])
    mine = [weight for weight in module.parameters() if weight not in done]
    kinds = sorted({str(weight.dtype).removeprefix("torch.") for weight in mine})
    if len(kinds) != 1:
        raise DowserError(
            f"got weights of {' and '.join(kinds)} in a {type(module).__name__}, expected one precision: FSDP1 puts "
            "them behind each other. Load the model in one (--model.dtype), or use -c strategy/fsdp2"
        )
    unit = Unit(module, **options)
    done.update(mine)
    return unit


@torch.no_grad()
def _fill(module: nn.Module, weights: list[nn.Parameter], device: torch.device) -> None:
    """Give every process these weights of the first."""
    filled: dict[nn.Parameter, nn.Parameter] = {}
    for weight in weights:
        value = broadcast(torch.empty(weight.shape, dtype=weight.dtype) if weight.is_meta else weight.detach())
        if weight.is_meta:
            filled[weight] = nn.Parameter(value.to(device), requires_grad=weight.requires_grad)
    for owner in module.modules():
        for name, own in owner._parameters.items():
            if own in filled:
                owner._parameters[name] = filled[own]


def _fill_buffers(model: nn.Module, device: torch.device) -> None:
    for owner in model.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                value = broadcast(torch.empty(buffer.shape, dtype=buffer.dtype) if buffer.is_meta else buffer)
                owner._buffers[name] = value.to(device) if buffer.is_meta else buffer


def _put_places(units: list[Unit]) -> None:
    """Say of every weight what is here; all processes must call it."""
    weights: list[tuple[Unit, nn.Parameter, torch.Size]] = []
    counts: list[int] = []
    for unit in units:
        flat: Any = unit._handle.flat_param  # type: ignore[union-attr]
        weights += [(unit, weight, shape) for weight, shape in zip(flat._params, flat._shapes, strict=True)]
        counts += [info.numel_in_shard or 0 for info in flat._shard_param_infos]
    held = torch.zeros(collectives.world_size(), len(counts), dtype=torch.int64)
    held[collectives.rank()] = torch.tensor(counts)
    held = torch.tensor(all_reduce_counts(held.flatten().tolist())).view_as(held)
    for (unit, weight, shape), ends in zip(weights, held.cumsum(0).T.tolist(), strict=True):
        put_flat_shard(weight, FlatShard(shape, tuple(ends), collectives.rank(), unit))


def _with_places(model: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Pieces in a state dict are known as such."""
    for name, weight in model.named_parameters(remove_duplicate=False):
        put_flat_shard(state[prefix + name], flat_shard_of(weight))


class FSDP1Strategy(ShardedStrategy, FSDPStrategy):
    """Spreads weights, gradients, entries and moments over all processes (`FullyShardedDataParallel`).

    Args:
        reduce_dtype: that gradients are averaged in; null = that of the weights.
        timeout_minutes: that a process waits for the others, as while the first reads or writes a large model.
    """

    def __init__(self, reduce_dtype: Dtype | None = None, timeout_minutes: float = 60.0) -> None:
        super().__init__(timeout=patience(timeout_minutes))
        self.reduce_dtype = reduce_dtype

    @property
    def precision_plugin(self) -> FSDPPrecision:
        """The plugin `AutocastPrecision`, in the place of Lightning's."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Any) -> None:
        own = AutocastPrecision(plugin.precision, self) if type(plugin) is FSDPPrecision else plugin
        FSDPStrategy.precision_plugin.fset(self, own)  # type: ignore[attr-defined]

    def shard(self, network: Any) -> None:
        """Shard a model that is here as a whole; or on the first process, and elsewhere on the meta device."""
        if self.world_size == 1:  # FSDP1 would not cut it either, and hide its weights between steps
            return
        flat_shard_model(network, self.root_device, self.reduce_dtype and getattr(torch, self.reduce_dtype))

    def setup(self, trainer: Trainer) -> None:
        """The model was sharded as soon as it was loaded, in the precision it has."""
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
        if not is_sharded_model(module):
            module.to(self.root_device)
            return
        self.move_buffers()
        for child in module.children():
            if child is not module.model:
                child.to(self.root_device)
        module._device = self.root_device  # where batches belong


class AutocastPrecision(FSDPPrecision):
    """Autocast and float32 weights under FSDP1, like under every other strategy.

    Lightning lets FSDP1 itself compute bf16-mixed, in bfloat16 throughout; autocast keeps some of it in float32, and
    the numbers of one process are those of autocast.
    """

    def __init__(self, precision: Any, strategy: FSDP1Strategy) -> None:
        super().__init__(precision)
        self._strategy = strategy

    def clip_grad_by_norm(self, *arguments: Any, **options: Any) -> None:
        """Clip by the norm where one process has all gradients; several have a way of their own."""
        super(FSDPPrecision, self).clip_grad_by_norm(*arguments, **options)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast, on the device that computes."""
        if self.precision != "bf16-mixed":
            return super().forward_context()
        device = self._strategy.root_device.type
        return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)


StrategyRegistry.register("fsdp1", FSDP1Strategy, description="as fsdp2, by FSDP1; fsdp2 is the better choice")
