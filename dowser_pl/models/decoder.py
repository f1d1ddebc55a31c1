"""Where the text decoder of a model is: `get_decoder`, then its one list of repeated blocks."""

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

__all__ = ["decoder_layers", "is_block"]


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The repeated blocks of the text decoder, first to last (T5 and the like: of the decoder half).

    Raises:
        ValueError: the text decoder holds no list of blocks, or more than one.
    """
    decoder: nn.Module = model
    while isinstance(decoder, PreTrainedModel) and (inner := decoder.get_decoder()) is not decoder:
        decoder = inner
    lists = list(_block_lists(decoder, skip=model.get_encoder(modality="image")))
    if len(lists) != 1:
        names = {module: name for name, module in model.named_modules()}
        raise ValueError(
            f"cannot tell the decoder layers of {type(model).__name__}: got {len(lists)} lists of blocks "
            f"({', '.join(names[blocks] for blocks in lists) or 'none'}) in its text decoder "
            f"{type(decoder).__name__}, expected exactly one. Fix: use one of the supported model families."
        )
    return lists[0]


def _block_lists(module: nn.Module, skip: nn.Module) -> Iterator[nn.ModuleList]:
    """The outermost lists whose every entry is a block with matrices; `skip` is the vision tower."""
    for child in module.children():
        if child is skip:
            continue
        if isinstance(child, nn.ModuleList) and len(child) > 0 and all(is_block(entry) for entry in child):
            yield child
        else:
            yield from _block_lists(child, skip)


def is_block(module: nn.Module) -> bool:
    """Whether a module holds matrices without being one."""
    matrices = (nn.Linear, Conv1D)
    return not isinstance(module, matrices) and any(isinstance(part, matrices) for part in module.modules())
