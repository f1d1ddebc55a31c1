"""The memory plan of a run: sizes of its model, its optimizer and its batches, put together before it starts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from dowser_pl.methods import EachStep, Lora, NullSpace
from dowser_pl.models.layers import decoder_layers
from dowser_pl.planning.activations import Batch, Decoder, activation_bytes
from dowser_pl.planning.memory import Form, Held, Kept, Matrix, OptimizerKind, Placement, Sizes, bytes_held, share_out
from dowser_pl.planning.optimizers import optimizer_kind

__all__ = ["ASSUMED_TEXT_TOKENS", "MemoryPlan", "batch_of", "decoder_of", "kept_by", "plan_of", "sizes_of"]

ASSUMED_TEXT_TOKENS = 512
"""Text of a conversation, beside its image, where nothing tells how long it is."""


@dataclass(frozen=True)
class MemoryPlan:
    """One form of training on one kind of device.

    Args:
        sizes: of the model.
        form: dense or compact.
        optimizer: what it keeps.
        placement: devices and strategy.
        decoder: for the activations; None = they are not estimated.
        batch: the same.
        card_bytes: memory of the device it will run on; None = not known, or no GPU.
        kept: by the method, beside each matrix.
    """

    sizes: Sizes
    form: Form
    optimizer: OptimizerKind
    placement: Placement = Placement()  # noqa: RUF009 - immutable
    decoder: Decoder | None = None
    batch: Batch | None = None
    card_bytes: int | None = None
    kept: Kept = Kept()  # noqa: RUF009 - immutable

    @property
    def held(self) -> Held:
        """The bytes that are held, by kind."""
        known = self.decoder is not None and self.batch is not None
        activations = activation_bytes(self.decoder, self.batch) if known else 0  # type: ignore[arg-type]
        return bytes_held(self.sizes, self.form, self.optimizer, self.placement, activations, self.kept)


def kept_by(method: Any, tuned: Iterable[Tensor], dtype: torch.dtype) -> Kept:
    """What a method keeps beside the tuned matrices.

    Args:
        method: a `dowser_pl.methods.Method`.
        tuned: (O, I) matrices, of which shapes and dtypes alone are read; with `Lora` A and B of adapters in turns.
        dtype: of the model, which directions of what adapters take in are kept in.

    Returns:
        Of directions of inputs what they take at most: as if no two matrices shared an input.
    """
    if isinstance(method, Lora) and method.null_space is not None:
        widths = [(first.shape[1], dtype.itemsize) for first in list(tuned)[::2]]
        return Kept(apart=True, shared=_direction_bytes(method.null_space.rank, widths))
    if isinstance(method, Lora) and method.preserve is not None:
        pairs = zip(list(tuned)[::2], list(tuned)[1::2], strict=True)
        sides = [(each, 4) for first, second in pairs for each in (first.shape[1], second.shape[0])]
        return Kept(apart=True, shared=_direction_bytes(method.preserve, sides))
    if isinstance(method, NullSpace):
        widths = [(weight.shape[1], weight.element_size()) for weight in tuned]
        return Kept(1, apart=True, shared=_direction_bytes(method.rank, widths))
    return Kept(1, method.num_kept) if isinstance(method, EachStep) else Kept()


def _direction_bytes(most: int | None, widths: Iterable[tuple[int, int]]) -> int:
    """Bytes of directions of so many inputs, each vector entry of so many bytes, and of their float32 shares."""
    ranks = ((inputs if most is None else min(most, inputs), inputs, size) for inputs, size in widths)
    return sum(rank * (inputs * size + 4) for rank, inputs, size in ranks)


def plan_of(
    trainer: Trainer,
    network: Any,
    tuned: Sequence[Tensor],
    num_trainable: int,
    update: Form,
    optimizer: Optimizer,
    kept: Kept = Kept(),  # noqa: B008 - immutable
) -> MemoryPlan:
    """The plan of a run that is about to start; nothing is allocated.

    Args:
        trainer: its precision, devices and data.
        network: the Hugging Face model, loaded.
        tuned: its matrices that a method may mask.
        num_trainable: entries of the tuned matrices that may move.
        update: `compact` or `dense`.
        optimizer: the one that will train them.
        kept: by the method, beside each matrix.
    """
    blocks = list(decoder_layers(network))
    recomputes = any(getattr(each, "gradient_checkpointing", False) for each in network.modules())
    sizes = sizes_of(network, blocks, tuned, num_trainable)
    device, data = trainer.strategy.root_device, getattr(trainer, "datamodule", None)
    on_gpu = device.type == "cuda"
    return MemoryPlan(
        sizes,
        update,
        optimizer_kind(optimizer, on_gpu),
        Placement(type(trainer.strategy).__name__, trainer.world_size),
        decoder_of(network, blocks, str(trainer.precision)),
        batch_of(network, data, recomputes, devices=trainer.world_size),
        torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        kept,
    )


def sizes_of(network: nn.Module, blocks: Sequence[nn.Module], tuned: Iterable[Tensor], num_trainable: int) -> Sizes:
    """What is there and what is trained.

    Args:
        network: whose parameters take a gradient where they are trained.
        blocks: its decoder layers.
        tuned: matrices under a mask.
        num_trainable: entries of them that may move.
    """
    masked = {id(weight): weight for weight in tuned}
    tensors = {id(each): each for each in (*network.parameters(), *network.buffers())}
    weights: dict[str, int] = {}
    for tensor in tensors.values():
        name = str(tensor.dtype).removeprefix("torch.")
        weights[name] = weights.get(name, 0) + tensor.nbytes
    free = [each for key, each in tensors.items() if each.requires_grad and key not in masked]
    return Sizes(
        weights,
        share_out([(each.numel(), each.element_size()) for each in masked.values()], num_trainable),
        tuple(Matrix(each.numel(), each.numel(), each.element_size()) for each in free),
        max((_nbytes(block) for block in blocks), default=0),
    )


def decoder_of(network: Any, blocks: Sequence[nn.Module], precision: str) -> Decoder | None:
    """Sizes of the text decoder; None where its config does not tell them.

    Args:
        network: a Hugging Face model whose trained weights take a gradient.
        blocks: its decoder layers, first to last.
        precision: as Lightning names it; `bf16-mixed` computes in 16 bits on weights of 32.
    """
    text = network.config.get_text_config(decoder=True)
    hidden, heads = (getattr(text, name, None) for name in ("hidden_size", "num_attention_heads"))
    if not hidden or not heads:
        return None
    named = ("intermediate_size", "ffn_dim", "d_ff")
    mlp = next((size for name in named if isinstance(size := getattr(text, name, None), int)), 4 * hidden)
    head_size = getattr(text, "head_dim", None) or hidden // heads
    above = _that_keep_something(network, blocks)
    itemsize = next(network.parameters()).element_size()
    mixed = "mixed" in precision and itemsize == 4
    return Decoder(
        len(above),
        hidden,
        heads * head_size,
        (getattr(text, "num_key_value_heads", None) or heads) * head_size,
        mlp,
        heads,
        text.vocab_size,
        2 if mixed else itemsize,
        getattr(network.config, "_attn_implementation", None) != "eager",
        sum(_nbytes(block) for block in above) // 2 if mixed else 0,
    )


def batch_of(
    network: Any, datamodule: Any, gradient_checkpointing: bool, tokens: int | None = None, devices: int = 1
) -> Batch:
    """What one device computes at a time.

    Args:
        network: its config tells the tokens of an image and the longest text.
        datamodule: its `batch_size` and `max_length`, where it has them; None = one row.
        gradient_checkpointing: of the run.
        tokens: of a row; None = an image and `ASSUMED_TEXT_TOKENS`.
        devices: that share the rows where the data module splits its batches.
    """
    rows = getattr(datamodule, "batch_size", None) or 1
    if getattr(datamodule, "split_batches", False):
        rows = -(-rows // devices)
    if tokens is None:
        limit = getattr(datamodule, "max_length", None)
        limits = [limit if isinstance(limit, int) else None]  # "auto" has room for any image
        limits.append(getattr(network.config.get_text_config(decoder=True), "max_position_embeddings", None))
        tokens = min([_image_tokens(network.config) + ASSUMED_TEXT_TOKENS, *(limit for limit in limits if limit)])
    return Batch(rows, tokens, gradient_checkpointing)


def _image_tokens(config: Any) -> int:
    """Of one image: as the config says, but no more than its patches and what is made of them; 0 where none is told."""
    vision = getattr(config, "vision_config", None)
    size, patch = (getattr(vision, name, None) for name in ("image_size", "patch_size"))
    told = [getattr(config, name, None) for name in ("image_seq_length", "mm_tokens_per_image", "num_query_tokens")]
    if isinstance(size, int) and isinstance(patch, int):
        told.append(int((size // patch / _merged(config)) ** 2))
    return min((number for number in told if isinstance(number, int) and number > 0), default=0)


def _merged(config: Any) -> float:
    """Patches in a row and in a column that become one token."""
    merged = getattr(config, "scale_factor", None)  # Idefics3, SmolVLM
    kept = getattr(config, "downsample_ratio", None)  # InternVL
    return float(merged) if merged else 1 / kept if kept else 1.0


def _that_keep_something(network: Any, blocks: Sequence[nn.Module]) -> Sequence[nn.Module]:
    """From the first trained layer on; all of them where something is trained that comes before the decoder."""
    inside = {id(weight) for block in blocks for weight in block.parameters()}
    head = network.get_output_embeddings()
    after = {id(weight) for weight in head.parameters()} if head is not None else set()
    before = [each for each in network.parameters() if each.requires_grad and id(each) not in inside | after]
    trained = [any(weight.requires_grad for weight in block.parameters()) for block in blocks]
    first = 0 if before or not any(trained) else trained.index(True)
    return blocks[first:]


def _nbytes(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())
