"""The end of training for methods that decide then: measure the tuned model, merge it with its base, write it back."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from dowser_pl.distributed import collectives
from dowser_pl.distributed.tensors import all_gather_like, full_tensor, shard_like, to_local
from dowser_pl.functional.masks import PackedMasks, pack, unpack
from dowser_pl.importance import GRAM_BYTES, InputGrams, grouped
from dowser_pl.masking import DenseEntries, Protection, TunedModule, frozen_of
from dowser_pl.methods import AfterFit, Layer, build_masks
from dowser_pl.models.layers import find_blocks
from dowser_pl.models.lora import adapters_of

__all__ = ["BeforeMerge", "Chooser", "Merging", "announce_merge", "let_choose", "merge_adapters", "snapshot", "unmerge"]


class BeforeMerge(ABC):
    """A callback that looks at the tuned model once more before it is merged."""

    @abstractmethod
    def before_merge(self, trainer: Trainer, pl_module: TunedModule) -> None:
        """Training has ended; the weights are those of the last step."""


class Chooser(ABC):
    """A callback that may have the model go back to what it was earlier in training."""

    @abstractmethod
    def choose(self, trainer: Trainer, pl_module: LightningModule, entries: Protection) -> None:
        """Training has ended; `entries` are closed, and nothing was merged yet."""


def let_choose(trainer: Trainer, pl_module: LightningModule, entries: Protection) -> None:
    """Let callbacks choose which model of the run it is that all files are of."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Chooser):
            callback.choose(trainer, pl_module, entries)


def announce_merge(trainer: Trainer, pl_module: TunedModule) -> None:
    """Let callbacks look at the tuned model, which is about to be changed."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BeforeMerge):
            callback.before_merge(trainer, pl_module)


def merge_adapters(trainer: Trainer, pl_module: TunedModule) -> None:
    """Write adapters into the matrices they belong to, where there are any and the matrices can take them in."""
    adapters = adapters_of(pl_module.network)
    if adapters is not None and adapters.mergeable:
        announce_merge(trainer, pl_module)
        adapters.merge()


def snapshot(trained: Protection) -> dict[str, dict[str, Tensor]]:
    """State of the entries that stays as it is when the weights are written; on the host."""
    state = trained.state_dict()
    for name, entry in state.items():
        if entry["values"].data_ptr() == trained.values(name).data_ptr():
            entry["values"] = entry["values"].clone()
    return state


def unmerge(weights: dict[str, Tensor], keys: Mapping[str, str], trained: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put the trained values into a state dict of the merged model, which stays as it is.

    Args:
        weights: key -> tensor.
        keys: name of a matrix -> key of its weight.
        trained: of `snapshot`.
    """
    for name, entry in trained.items():
        merged = weights[keys[name]]
        weights[keys[name]] = entry["values"].view_as(merged).to(merged)


@dataclass
class Merging:
    """Merges the tuned matrices of one model, the same on every process.

    Args:
        trainer: its precision, processes and data.
        pl_module: the model, tuned.
        method: decides after training.
        num_batches: training batches on each process that inputs are measured on, for methods that need them.
    """

    trainer: Trainer
    pl_module: TunedModule
    method: AfterFit
    num_batches: int

    def merge(self, trained: Protection) -> DenseEntries:
        """Write the merged weights into the model; costs host memory for a copy of the tuned matrices.

        Args:
            trained: all entries of the tuned matrices, and their base.

        Returns:
            The same matrices with the masks of the method, base on the host: what is outside of them is frozen.
        """
        announce_merge(self.trainer, self.pl_module)
        return self._merged(trained)

    @torch.no_grad()
    def _merged(self, trained: Protection) -> DenseEntries:
        weights = trained.weights
        base = {name: trained.base_values(name).view_as(to_local(weight)) for name, weight in weights.items()}

        def layer_of(name: str, gram: Tensor | None = None) -> Layer:
            """The whole matrix, also where it is sharded over processes."""
            weight = weights[name]
            before = all_gather_like(base[name].to(weight.device), weight)
            return Layer(name, before, tuned=full_tensor(weight), input_gram=gram)

        masks = PackedMasks()
        if "input_gram" not in self.method.needs:  # who shares a budget must see all matrices before any is written
            for name, mask in build_masks(self.method, self._blocks(), layer_of):
                self._keep(masks, weights[name], name, mask)
            for name in weights:
                layer = layer_of(name)
                self._write(weights[name], self.method.merge(layer, all_gather_like(masks[name], weights[name])))
            return frozen_of(trained, masks, base)
        # from the last decoder layer to the first, so that no matrix is measured on inputs that a merge has changed
        for group in reversed(grouped(self.pl_module.tuned_layers(), self._blocks(), GRAM_BYTES)):
            grams = self._measure(group)
            for name in group:
                layer = layer_of(name, grams.mean(name))
                mask = self._keep(masks, weights[name], name, self.method.mask(layer))
                self._write(weights[name], self.method.merge(layer, mask))
        return frozen_of(trained, masks, base)

    def _keep(self, masks: PackedMasks, weight: Tensor, name: str, mask: Tensor) -> Tensor:
        """Keep of a mask what is here of the matrix; returns all of it."""
        if self.trainer.world_size > 1:  # kernels may round differently: all take the first process' mask
            mask = unpack(self.trainer.strategy.broadcast(pack(mask)).to(mask.device), mask.shape)
        here = shard_like(mask, weight)
        masks.put(name, pack(here), here.shape, mask.device)
        return mask

    def _write(self, weight: Tensor, merged: Tensor) -> None:
        if self.trainer.world_size > 1:
            merged = self.trainer.strategy.broadcast(merged.cpu())
        to_local(weight).copy_(shard_like(merged, weight))

    def _blocks(self) -> dict[str, str]:
        return find_blocks(self.pl_module.network, self.pl_module.tuned_layers())

    def _measure(self, layers: Mapping[str, nn.Linear]) -> InputGrams:
        network = self.pl_module.network
        network.eval()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context(), InputGrams(layers) as grams:
            for batch in self._batches():
                batch.pop("ids", None)
                grams.start(batch["attention_mask"].bool(), inputs=batch)
                network(**batch, use_cache=False)
        network.train()
        for name, total in grams.sums.items():
            collectives.all_reduce(total)
            grams.counts[name] = int(collectives.all_reduce(torch.tensor(grams.counts[name], device=total.device)))
        return grams

    def _batches(self) -> Iterator[dict[str, Any]]:
        """The first training batches, on the device."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        loader = getattr(datamodule, "calibration_dataloader", datamodule.train_dataloader)()
        for batch in islice(loader, self.num_batches):
            yield self.trainer.strategy.batch_to_device(batch)
