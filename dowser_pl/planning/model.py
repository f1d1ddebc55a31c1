"""The memory plan of a run: sizes of its model, its optimizer and its batches, put together before it starts."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from dowser_pl.methods import OSF, EachStep, Lora, NullSpace
from dowser_pl.models.experts import has_experts, width_beside
from dowser_pl.models.layers import decoder_layers
from dowser_pl.models.lora import Adapters, adapters_of
from dowser_pl.models.quantized import is_quantized, scale_bytes
from dowser_pl.models.shared_inputs import input_owners
from dowser_pl.planning.activations import Batch, Decoder, activation_bytes
from dowser_pl.planning.memory import Form, Held, Kept, Matrix, OptimizerKind, Placement, Sizes, bytes_held, share_out
from dowser_pl.planning.optimizers import optimizer_kind
from dowser_pl.planning.written import WrittenRows

__all__ = [
    "ASSUMED_TEXT_TOKENS",
    "MemoryPlan",
    "batch_of",
    "decoder_of",
    "keeps_best",
    "kept_by",
    "plan_of",
    "sizes_of",
]

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
        written: rows of the base that are kept, and used in a step.
        best: whether what was trained at the best validation so far is kept.
    """

    sizes: Sizes
    form: Form
    optimizer: OptimizerKind
    placement: Placement = Placement()  # noqa: RUF009 - immutable
    decoder: Decoder | None = None
    batch: Batch | None = None
    card_bytes: int | None = None
    kept: Kept = Kept()  # noqa: RUF009 - immutable
    written: tuple[WrittenRows, ...] = ()
    best: bool = False

    @property
    def held(self) -> Held:
        """The bytes that are held, by kind."""
        activations = max((self.activations_of(each) for each in (self.batch, *self.steps)), default=0)
        return bytes_held(self.sizes, self.form, self.optimizer, self.placement, activations, self.kept, self.best)

    @property
    def steps(self) -> list[Batch]:
        """What optimizer steps compute beside the batch, when its activations are gone."""
        recomputes = self.batch is not None and self.batch.gradient_checkpointing
        steps = [each.step for each in self.written if each.step is not None]
        return [replace(each, gradient_checkpointing=recomputes) for each in steps]

    def activations_of(self, batch: Batch | None) -> int:
        """Bytes of one batch; 0 where they are not estimated."""
        return 0 if self.decoder is None or batch is None else activation_bytes(self.decoder, batch)


def kept_by(method: Any, network: Any, layers: Mapping[str, nn.Linear]) -> Kept:
    """What a method keeps beside the tuned matrices.

    Args:
        method: a `dowser_pl.methods.Method`.
        network: the Hugging Face model, which may have no weights yet.
        layers: its matrices that are tuned; with `Lora` A and B of adapters.

    Returns:
        Of directions of inputs what they take at most, once for all matrices that share an input, see
        `dowser_pl.models.shared_inputs`.
    """
    if isinstance(method, NullSpace):
        widths = {name: (layer.in_features, layer.weight.dtype.itemsize) for name, layer in layers.items()}
        every = sum(layer.in_features * layer.out_features for layer in layers.values())
        return Kept(1, apart=every, shared=_direction_bytes(method.rank, network, widths))
    if isinstance(method, OSF):
        sides = [(layer.out_features, layer.in_features) for layer in layers.values()]
        shared = sum(4 * method.rank_of(outputs, inputs) * (outputs + inputs + 1) for outputs, inputs in sides)
        return Kept(1, apart=sum(outputs * inputs for outputs, inputs in sides), shared=shared)
    adapters = adapters_of(network)
    if isinstance(method, Lora) and adapters is not None:
        return _beside_adapters(method, adapters, network, layers)
    return Kept(1, method.num_kept) if isinstance(method, EachStep) else Kept()


def _beside_adapters(method: Lora, adapters: Adapters, network: Any, parts: Mapping[str, nn.Linear]) -> Kept:
    """As `kept_by`, of A and B of adapters."""
    every = sum(part.in_features * part.out_features for part in parts.values())
    first = sum(parts[name].in_features * parts[name].out_features for name in adapters.sources)
    if method.null_space is not None:
        widths = {name: (each.in_features, network.dtype.itemsize) for name, each in adapters.matrices.items()}
        return Kept(apart=first, shared=_direction_bytes(method.null_space.rank, network, widths))
    if method.preserve is not None:
        sides = [side for each in adapters.matrices.values() for side in (each.in_features, each.out_features)]
        return Kept(apart=every, shared=sum(min(method.preserve, side) * (side * 4 + 4) for side in sides))
    if method.start is not None:
        return Kept(shared=4 * (first + (every - first) // 2 if method.start.freeze else every // 2))
    return Kept()


def _direction_bytes(most: int | None, network: Any, widths: Mapping[str, tuple[int, int]]) -> int:
    """Bytes of directions, and of their float32 shares.

    Args:
        most: directions of an input; None = all.
        network: tells which inputs are shared.
        widths: of each matrix its inputs, and bytes of an entry of a vector.
    """
    inputs = [widths[name] for name in set(input_owners(network, widths).values())]
    return sum((width if most is None else min(most, width)) * (width * size + 4) for width, size in inputs)


def plan_of(
    trainer: Trainer,
    network: Any,
    tuned: Sequence[Tensor],
    num_trainable: int,
    update: Form,
    optimizer: Optimizer,
    kept: Kept = Kept(),  # noqa: B008 - immutable
    written: Sequence[WrittenRows] = (),
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
        written: rows of the base that are kept, and used in a step.
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
        tuple(written),
        keeps_best(trainer),
    )


def keeps_best(trainer: Trainer) -> bool:
    """Whether a run keeps what was trained at its best validation so far, in host memory and in checkpoints."""
    return any(getattr(each, "keeps_best", False) for each in trainer.callbacks)  # type: ignore[attr-defined]


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
    weights = Counter[str]()
    for tensor in tensors.values():
        weights[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    for module in network.modules():
        if scales := scale_bytes(module):  # packed weights, whose bytes are integers
            packed: Any = module.weight
            weights[str(packed.dtype).removeprefix("torch.")] -= packed.nbytes
            weights["packed"] += packed.nbytes + scales
    free = [each for key, each in tensors.items() if each.requires_grad and key not in masked]
    return Sizes(
        {dtype: size for dtype, size in weights.items() if size},
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
    if mixtures := [block for block in blocks if has_experts(block)]:  # each token passes some, as the config says
        width = getattr(text, "moe_intermediate_size", None) or getattr(text, "intermediate_size", None) or mlp
        some = getattr(text, "num_experts_per_tok", None) or getattr(text, "top_k_experts", None) or 1
        mlp = max(mlp, width * some + max(width_beside(block, hidden) for block in mixtures))
    head_size = getattr(text, "head_dim", None) or hidden // heads
    above = _that_keep_something(network, blocks)
    itemsize = network.dtype.itemsize
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
        max((_unpacked(module, itemsize) for module in network.modules()), default=0),
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
    if most := getattr(config, "most_image_tokens", None):  # NVILA, which cuts an image into tiles
        return int(most)
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


def _unpacked(module: nn.Module, itemsize: int) -> int:
    if not isinstance(module, nn.Linear) or not is_quantized(module):
        return 0
    return module.in_features * module.out_features * itemsize


def _nbytes(module: nn.Module) -> int:
    """Of its weights; of packed ones, which autocast leaves alone and which are not sharded, none."""
    return sum(weight.nbytes for weight in module.parameters() if weight.is_floating_point())
