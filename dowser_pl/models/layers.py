"""Which matrices of a model may be tuned; with `parts.py` and `qformer.py` all that knows names of layers.

A matrix is found by where it sits, never by one prefix: a layer of the text decoder (`get_decoder`, then its one list
of repeated blocks), an `nn.Linear` inside it, and the words on the way to it. Fails closed: whatever inside a decoder
layer is not understood is refused by name, because a matrix that is overlooked is neither scored nor masked.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dowser_pl.errors import DowserError
from dowser_pl.models.experts import NOT_MASKED, has_experts, is_block, of_experts, refuse_reached
from dowser_pl.models.qformer import QFORMER, qformer_layers, qformer_matrices

__all__ = [
    "TARGETS",
    "check_kind",
    "decoder_layers",
    "find_blocks",
    "find_layers",
    "kind_of",
    "picture_layers",
    "places_of",
    "text_inputs",
    "text_model",
]


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The repeated blocks of the text decoder, first to last (T5 and the like: of the decoder half).

    Raises:
        DowserError: the text decoder holds no list of blocks, or more than one.
    """
    decoder: nn.Module = model
    while isinstance(decoder, PreTrainedModel) and (inner := decoder.get_decoder()) is not decoder:
        decoder = inner
    lists = list(_block_lists(decoder, skip=model.get_encoder(modality="image")))
    if len(lists) != 1:
        names = {module: name for name, module in model.named_modules()}
        raise DowserError(
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


def text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model to run on text alone: the smallest one that holds both the decoder layers and the head.

    That is the model itself for most families, whose forward takes `input_ids` without images. InstructBLIP
    and BLIP-2 demand images but hold a complete language model, which is returned; where its config says
    `is_encoder_decoder` (T5), forward also needs `decoder_input_ids` or `labels`.

    Raises:
        DowserError: no language-model head, or no decoder layers.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise DowserError(f"got {type(model).__name__} without a head, expected a model that writes text.")
    needed = {head, decoder_layers(model)}
    complete = [m for m in model.modules() if isinstance(m, PreTrainedModel) and needed <= set(m.modules())]
    return complete[-1]  # modules() goes from the outside in


def check_kind(model: PreTrainedModel, base: tuple[str, int], name: str) -> None:
    """Refuse a model that no tuning makes of a base.

    Args:
        model: that is compared with it.
        base: what `kind_of` told of that.
        name: of the model, for the message.

    Raises:
        DowserError: if it is of another class, or has another number of tokens.
    """
    if kind_of(model) != base:
        (got, tokens), (expected, words) = kind_of(model), base
        raise DowserError(
            f"{name} is {got} with {tokens} tokens, expected a tuned model of the base, {expected} with {words}"
        )


def kind_of(model: PreTrainedModel) -> tuple[str, int]:
    """The class of a model, and how many tokens it knows."""
    return type(model).__name__, len(text_model(model).get_output_embeddings().weight)


def picture_layers(model: PreTrainedModel) -> list[int]:
    """Numbers of the decoder layers that run where there is a picture, and not else; empty for most families."""
    return list(getattr(model.config.get_text_config(decoder=True), "cross_attention_layers", None) or [])


def text_inputs(model: PreTrainedModel, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What forward and generate of a `text_model` take for text alone.

    PaliGemma must be told that every token is to be read causally: without token types, and where no row is padded,
    transformers lets its text see its own future. Molmo2 wants to be told in training that no token is an image's.

    Args:
        model: what `text_model` returned.
        tokens: (B, T) int64.
        mask: (B, T) int64, 0 at padding.
    """
    inputs = {"input_ids": tokens, "attention_mask": mask}
    if model.config.model_type == "paligemma":
        inputs["token_type_ids"] = torch.ones_like(tokens)
    elif model.config.model_type == "molmo2":
        inputs["mm_token_type_ids"] = torch.zeros_like(tokens)
    return inputs


TARGETS = ("attn", "mlp")

# Looked for in attribute and class names on the way from a decoder layer to a matrix, in lower case, no "_".
_WORDS = {
    "attn": ("attn", "attention"),
    "mlp": ("mlp", "ffn", "feedforward", "densereludense", "fc1", "fc2"),
}


def find_layers(model: PreTrainedModel, last_n_layers: int | None, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The matrices to tune: every `nn.Linear` of the chosen kinds or names in the last decoder layers.

    Args:
        model: the whole model; names are those of `model.named_modules()`.
        last_n_layers: how many decoder layers, counted from the output; None for all.
        targets: kinds of matrices, "attn" (self- and cross-attention) and "mlp", and names of matrices, such as
            "q_proj", or as many last parts of a name as tell it from others, such as "EncDecAttention.q". "qformer" is
            every matrix of all layers of the Q-Former, "qformer.crossattention.attention.query" those of a name.

    Returns:
        Run-time name to module, in model order. 4- and 8-bit layers of bitsandbytes are `nn.Linear` too: read
        their shape from `out_features` and `in_features`, their weight is packed. Biases are the caller's.

    Raises:
        DowserError: nothing found, an argument out of range, a layer that is not understood (see above), or targets
            that reach a mixture of experts, which stays frozen whole.
    """
    _check_targets(targets)
    found, met, there = _qformer_targets(model, targets)
    in_decoder = [each for each in targets if each.partition(".")[0] != QFORMER]
    if last_n_layers is not None and not in_decoder:
        raise DowserError(
            f"got last_n_layers={last_n_layers} and targets={list(targets)!r}, expected null, as it counts "
            "layers of the text decoder, of which no matrix is tuned."
        )
    names = {module: name for name, module in model.named_modules()}
    layers = decoder_layers(model)
    first = _first_layer(last_n_layers, len(layers))
    reached = set[str]()
    for index, layer in enumerate(layers):
        experts = of_experts(layer)
        _refuse_unmaskable(names[layer], layer, experts)
        matrices = {
            name: module
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear) and name not in experts
        }
        kinds = {name: _kind(names[layer], layer, name) for name in matrices}
        if index < first:
            continue
        called = {_called(name, experts): None for name in matrices}
        if experts:
            refuse_reached(names[layer], experts, in_decoder, list(called))
        there |= called
        for name, module in matrices.items():
            matched = {each for each in in_decoder if each == kinds[name] or f".{name}".endswith(f".{each}")}
            met |= matched
            if matched:
                found[f"{names[layer]}.{name}"] = module
        reached |= experts.keys()
    there = {name: None for name in there if not any(f".{each}".endswith(f".{name}") for each in reached)}
    if not found or set(targets) - met - set(TARGETS):
        raise DowserError(
            f"got targets={list(targets)!r}, of which {sorted(set(targets) - met)} match no matrix to tune in "
            f"{type(model).__name__}. Expected some of {list(TARGETS)}, or names of matrices: {list(there)}."
        )
    _refuse_tied(model, found)
    return found


def _qformer_targets(
    model: PreTrainedModel, targets: Sequence[str]
) -> tuple[dict[str, nn.Linear], set[str], dict[str, None]]:
    """Matrices of the Q-Former that are targets, the targets that are met, and what its matrices may be called."""
    parts = {each: each.partition(".")[2] for each in targets if each.partition(".")[0] == QFORMER}
    found: dict[str, nn.Linear] = {}
    met, there = set[str](), dict[str, None]()
    for full_name, name, module in qformer_matrices(model):
        there |= {QFORMER: None, f"{QFORMER}.{name}": None}
        if matched := {each for each, part in parts.items() if not part or f".{name}".endswith(f".{part}")}:
            met |= matched
            found[full_name] = module
    for name, layer in qformer_layers(model).items() if found else ():
        _refuse_unmaskable(name, layer, ())
        if has_experts(layer):
            raise DowserError(
                f"got a mixture of experts in {name}, expected dense layers of a Q-Former. Fix: leave {QFORMER} out of "
                "the targets."
            )
    return found, met, there


def find_blocks(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Which layer, of the decoder or of the Q-Former, each matrix sits in.

    Args:
        model: the whole model.
        names: run-time names from `find_layers`.

    Returns:
        Name of the matrix to name of its layer, in the order of `names`.
    """
    runtime = {module: name for name, module in model.named_modules()}
    blocks = [*qformer_layers(model), *(runtime[layer] for layer in decoder_layers(model))]
    return {name: next(block for block in blocks if name.startswith(f"{block}.")) for name in names}


def places_of(model: PreTrainedModel, names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Where in the decoder each matrix sits: name -> number of its layer from 0, and its name within that.

    Args:
        model: the whole model.
        names: run-time names from `find_layers`.
    """
    runtime = {module: name for name, module in model.named_modules()}
    order = {runtime[layer]: number for number, layer in enumerate(decoder_layers(model))}
    return {name: (order[block], name.removeprefix(f"{block}.")) for name, block in find_blocks(model, names).items()}


def _called(name: str, experts: Collection[str]) -> str:
    """The last part of a matrix's name, with the part before it where experts have a matrix of that name."""
    last = name.rpartition(".")[2]
    return ".".join(name.split(".")[-2:]) if any(f".{each}".endswith(f".{last}") for each in experts) else last


def _kind(layer_name: str, layer: nn.Module, name: str) -> str:
    """The target, "attn" or "mlp", that the matrix `name` inside `layer` belongs to."""
    steps = name.split(".")
    path = [layer.get_submodule(".".join(steps[:depth])) for depth in range(1, len(steps) + 1)]
    spoken = " ".join(steps + [type(module).__name__ for module in path]).lower().replace("_", "")
    kinds = [kind for kind, words in _WORDS.items() if any(word in spoken for word in words)]
    if len(kinds) != 1:
        raise DowserError(
            f"cannot tell whether {layer_name}.{name} belongs to attention or to the MLP: got "
            f"{' and '.join(kinds) or 'neither'}, expected one of {list(TARGETS)}. Fix: use one of the "
            f"supported model families, or add the words of {type(layer).__name__} to dowser_pl/models/layers.py."
        )
    return kinds[0]


def _refuse_unmaskable(layer_name: str, layer: nn.Module, experts: Collection[str]) -> None:
    """Raise for GPT-2's transposed matrices, and for matrices outside any known module, but those of experts."""
    for name, module in layer.named_modules():
        if isinstance(module, (nn.Linear, *NOT_MASKED)):
            continue
        for own, weight in module.named_parameters(recurse=False):
            full = f"{name}.{own}" if name else own
            if weight.ndim >= 2 and full.removesuffix(".weight") not in experts:
                raise DowserError(
                    f"got the matrix {layer_name}.{full} in a {type(module).__name__}, expected every matrix of a "
                    f"decoder layer in an nn.Linear (GPT-2's Conv1D and custom modules are not supported). Fix: use a "
                    f"model whose decoder is built from nn.Linear."
                )


def _check_targets(targets: Sequence[str]) -> None:
    if isinstance(targets, str) or not targets or not all(targets):
        raise DowserError(
            f"got targets={targets!r}, expected a list of one or more of {list(TARGETS)} or names of matrices."
        )


def _first_layer(last_n_layers: int | None, num_layers: int) -> int:
    """Index of the first layer to tune."""
    if last_n_layers is None:
        return 0
    if not 1 <= last_n_layers <= num_layers:
        raise DowserError(
            f"got last_n_layers={last_n_layers}, expected 1 to {num_layers}, the number of layers of the "
            f"text decoder. Fix: choose a number in this range, or null for all layers."
        )
    return num_layers - last_n_layers


def _refuse_tied(model: PreTrainedModel, found: dict[str, nn.Linear]) -> None:
    """Raise if a chosen weight is also used elsewhere: a mask on one use would silently bind the other."""
    uses: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        uses.setdefault(id(weight), []).append(name)
    for name, module in found.items():
        shared = uses[id(module.weight)]
        if len(shared) > 1:
            raise DowserError(
                f"got tied weights: {' and '.join(shared)} are one tensor, expected {name} to own its "
                f"weight. Fix: untie them, or choose other targets or fewer layers."
            )
