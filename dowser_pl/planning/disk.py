"""What a run writes to disk, from sizes alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import nn

from dowser_pl.distributed.tensors import shape_of
from dowser_pl.models.lora import adapters_of
from dowser_pl.planning.memory import Kept, OptimizerKind
from dowser_pl.planning.model import keeps_best
from dowser_pl.planning.written import WrittenRows

__all__ = ["disk_bytes"]


def disk_bytes(
    trainer: Trainer,
    network: Any,
    layers: Mapping[str, nn.Linear],
    trained: int,
    checkpoint: str,
    kind: OptimizerKind,
    kept: Kept = Kept(),  # noqa: B008 - immutable
    written: Sequence[WrittenRows] = (),
) -> dict[str, int]:
    """Bytes of each; a checkpoint twice, as the old one stays until the new one is whole, and is there on a resume.

    Args:
        trainer: its callbacks that write.
        network: the Hugging Face model, which may have no weights yet.
        layers: its matrices that are tuned.
        trained: entries of the tuned matrices that will be trained.
        checkpoint: `compact` or `full`.
        kind: of the optimizer.
        kept: by the method, beside each matrix.
        written: rows of the base that checkpoints hold, and what it said on them.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    enabled = {type(each).__name__ for each in callbacks if getattr(each, "enabled", True)}
    tuned = {id(layer.weight): layer.weight for layer in layers.values()}
    parameters = list(network.parameters())
    model = sum(shape_of(each).numel() * each.itemsize for each in parameters)
    whole = [each for each in parameters if each.requires_grad and id(each) not in tuned]
    bits = sum(shape_of(each).numel() for each in tuned.values()) // 8
    width = next(iter(tuned.values())).itemsize
    beside = [(shape_of(each).numel(), each.itemsize) for each in whole]
    one = bits + (trained * (1 + kept.float32) + kept.apart) * 4 + kept.shared
    one += sum(entries * size for entries, size in beside)
    one += sum(kind.state_bytes(*each) for each in [(trained, 4), *beside]) if kind.known else 0
    one += model + trained * width if checkpoint == "full" else 0
    if keeps_best(trainer):  # what was trained at the best validation
        one += trained * 4 + sum(entries * size for entries, size in beside)
    sizes, adapters = {}, adapters_of(network)
    if "Export" in enabled and (adapters is None or adapters.mergeable):
        sizes["the exported model"] = model
    if "Checkpoints" in enabled:
        copies = 1 if trainer.ckpt_path else 2
        sizes["checkpoints"] = copies * one
        sizes |= {f"{each.use} in checkpoints": copies * each.checkpoint for each in written if each.checkpoint}
    if "PatchFile" in enabled:
        sizes["the patch"] = bits + trained * width
    return sizes
