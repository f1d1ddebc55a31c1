"""What strategies that shard a model have in common: checkpoints of one format, and optimizers that fit it.

Checkpoints are the files that one process writes, so any strategy and number of processes can go on from them: rows
are gathered one tensor at a time, and only of what the callbacks leave in. Where it is asked for they are folders, in
which every process writes its share. They are read before training is set up, as under DDP, not after: masks are never
computed on weights that a checkpoint holds.
"""

from abc import abstractmethod
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from dowser_pl.distributed.checkpoint import (
    Stored,
    is_folder,
    open_folder,
    read_file,
    read_folder,
    shares_of,
    write_folder,
)
from dowser_pl.distributed.limits import no_optimizer
from dowser_pl.distributed.tensors import is_sharded, shape_of, shard_like, to_local, to_rank_zero
from dowser_pl.errors import DowserError
from dowser_pl.strategies.optimizer_state import cut_states, gathered_states, shared_states

__all__ = [
    "Dtype",
    "ShardedStrategy",
    "patience",
]

Dtype = Literal["float32", "bfloat16"]


class ShardedStrategy(ParallelStrategy):
    """What strategies that shard a model have in common: checkpoints of one format, and optimizers that fit it."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Before, like strategies that do not shard."""
        return False

    @property
    def saves_sharded(self) -> bool:
        """Whether checkpoints take what is sharded as it is, of every process."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Restore optimizers with what `load_checkpoint` read."""
        return True

    @abstractmethod
    def shard(self, network: Any) -> None:
        """Shard a model that is here as a whole; or on the first process, and elsewhere on the meta device."""

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Refuse those whose states cannot be put together in a checkpoint, and what has no rows to be sharded by.

        Raises:
            DowserError: if there is such a one.
        """
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if any(each.dim() == 0 for group in optimizer.param_groups for each in group["params"]):
                raise DowserError(
                    "got a parameter without dimensions among those that are trained, expected at least one: it is not "
                    "sharded, so every process would train its own. Leave its part out of model.also_train, or use "
                    "--trainer.strategy ddp"
                )
            refused = no_optimizer(optimizer)
            if refused:
                raise DowserError(refused)

    def move_buffers(self) -> None:
        """Buffers are whole on every process, where it computes; what is sharded stays where it is kept."""
        module: Any = self.lightning_module
        for part in module.modules():
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = buffer.to(self.root_device)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights as they are sharded; `save_checkpoint` gathers what is left of them by then."""
        module: LightningModule | None = self.lightning_module
        assert module is not None
        return module.state_dict(keep_vars=True)  # so that tied weights are seen to be one

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The states as one process would have them, on the first, elsewhere nothing; or what is here, for a folder."""
        return (shared_states if self.saves_sharded else gathered_states)(getattr(optimizer, "_optimizer", optimizer))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Gather the weights that are left in the checkpoint and write it once, or write what is here."""
        if self.saves_sharded:
            checkpoint["state_dict"] = shares_of(checkpoint["state_dict"])
            write_folder(checkpoint, self.broadcast(filepath))
            return
        if is_folder(filepath) and type(self.checkpoint_io) is TorchCheckpointIO:  # which would write *into* it
            raise DowserError(
                f"{filepath} is a folder of an earlier save, expected a file to replace: give the Trainer "
                "plugins=[AtomicCheckpointIO()] of dowser_pl.callbacks, as the command line does"
            )
        checkpoint["state_dict"] = to_rank_zero(checkpoint["state_dict"])
        ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The whole checkpoint, file or folder: of its tensors only what is used is read.

        Raises:
            DowserError: if it is not one.
        """
        module: Any = self.lightning_module
        if is_folder(checkpoint_path):  # FSDP1 cuts nothing where it has one process
            sharded = any(map(is_sharded, module.parameters()))
            return (open_folder if sharded else read_folder)(checkpoint_path, weights_only)
        found: dict[str, Any] = read_file(checkpoint_path, weights_only, mmap=True)
        return found

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take over what this process holds.

        Raises:
            DowserError: if a tensor is missing, too many or of another shape.
        """
        module: Any = self.lightning_module
        own, given = module.state_dict(), checkpoint["state_dict"]
        odd = sorted(set(own) ^ set(given)) or sorted(key for key in own if shape_of(own[key]) != shape_of(given[key]))
        if odd and strict:
            raise DowserError(
                f"the checkpoint and the model do not fit: the first tensor that differs is {odd[0]!r}; resume with "
                "the model it was made from"
            )
        with torch.no_grad():
            for key in set(own) & set(given):
                _copy(own[key], given[key])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take over the states of the entries that this process trains."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(cut_states(state, optimizer))


def patience(minutes: float) -> timedelta:
    """How long a process waits for the others.

    Raises:
        DowserError: unless it is above 0.
    """
    if not minutes > 0:
        raise DowserError(f"timeout_minutes must be above 0, got {minutes}")
    return timedelta(minutes=minutes)


def _copy(own: Tensor, given: Tensor | Stored) -> None:
    if given is own:
        return
    if isinstance(given, Stored):
        to_local(own).copy_(given.part_of(own))
    else:
        to_local(own).copy_(to_local(given) if is_sharded(given) else shard_like(given, own))
