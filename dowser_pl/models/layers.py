"""Which matrices of a model may be tuned; this file and `parts.py` alone know Hugging Face layer names.

A matrix is found by where it sits, never by one prefix: a layer of the text decoder, an `nn.Linear` inside it,
and the words on the way to it. Fails closed: whatever inside a decoder layer is not understood is refused by
name, because a matrix that is overlooked is neither scored nor masked.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel

from dowser_pl.models.decoder import decoder_layers, is_block
from dowser_pl.models.parts import named_part, text_inputs, text_model

__all__ = ["TARGETS", "decoder_layers", "find_blocks", "find_layers", "named_part", "text_inputs", "text_model"]

TARGETS = ("attn", "mlp")

# Looked for in attribute and class names on the way from a decoder layer to a matrix, in lower case, no "_".
_WORDS = {
    "attn": ("attn", "attention"),
    "mlp": ("mlp", "ffn", "feedforward", "densereludense", "fc1", "fc2"),
}
# Modules that are understood and whose weights simply stay frozen.
_NOT_MASKED = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def find_layers(model: PreTrainedModel, last_n_layers: int | None, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The matrices to tune: every `nn.Linear` of the chosen kinds in the last decoder layers.

    Args:
        model: the whole model; names are those of `model.named_modules()`.
        last_n_layers: how many decoder layers, counted from the output; None for all.
        targets: kinds of matrices, from "attn" (self- and cross-attention) and "mlp".

    Returns:
        Run-time name to module, in model order. 4- and 8-bit layers of bitsandbytes are `nn.Linear` too: read
        their shape from `out_features` and `in_features`, their weight is packed. Biases are the caller's.

    Raises:
        ValueError: nothing found, an argument out of range, or a layer that is not understood (see above).
    """
    _check_targets(targets)
    names = {module: name for name, module in model.named_modules()}
    layers = decoder_layers(model)
    first = _first_layer(last_n_layers, len(layers))
    found: dict[str, nn.Linear] = {}
    for index, layer in enumerate(layers):
        _refuse_unmaskable(names[layer], layer)
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                kind = _kind(names[layer], layer, name)
                if kind in targets and index >= first:
                    found[f"{names[layer]}.{name}"] = module
    if not found:
        raise ValueError(
            f"got no matrix to tune in {type(model).__name__}: its decoder layers hold no nn.Linear of "
            f"{list(targets)}. Expected at least one. Fix: choose other targets from {list(TARGETS)}."
        )
    _refuse_tied(model, found)
    return found


def find_blocks(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Which decoder layer each matrix sits in.

    Args:
        model: the whole model.
        names: run-time names from :func:`find_layers`.

    Returns:
        Name of the matrix to name of its decoder layer, in the order of `names`.
    """
    runtime = {module: name for name, module in model.named_modules()}
    blocks = [runtime[layer] for layer in decoder_layers(model)]
    return {name: next(block for block in blocks if name.startswith(f"{block}.")) for name in names}


def _kind(layer_name: str, layer: nn.Module, name: str) -> str:
    """The target, "attn" or "mlp", that the matrix `name` inside `layer` belongs to."""
    steps = name.split(".")
    path = [layer.get_submodule(".".join(steps[:depth])) for depth in range(1, len(steps) + 1)]
    spoken = " ".join(steps + [type(module).__name__ for module in path]).lower().replace("_", "")
    kinds = [kind for kind, words in _WORDS.items() if any(word in spoken for word in words)]
    if len(kinds) != 1:
        raise ValueError(
            f"cannot tell whether {layer_name}.{name} belongs to attention or to the MLP: got "
            f"{' and '.join(kinds) or 'neither'}, expected one of {list(TARGETS)}. Fix: use one of the "
            f"supported model families, or add the words of {type(layer).__name__} to dowser_pl/models/layers.py."
        )
    return kinds[0]


def _refuse_unmaskable(layer_name: str, layer: nn.Module) -> None:
    """Raise for experts, for GPT-2's transposed matrices, and for matrices outside any known module."""
    weights = [
        (f"{name}.{weight_name}", module, weight)
        for name, module in layer.named_modules(prefix=layer_name)
        if not isinstance(module, (nn.Linear, *_NOT_MASKED))
        for weight_name, weight in module.named_parameters(recurse=False)
    ]
    experts = [name for name, module in layer.named_modules(prefix=layer_name) if _is_expert_list(module)]
    experts += [name for name, _, weight in weights if weight.ndim >= 3]
    if experts:
        raise ValueError(
            f"got a mixture of experts at {experts[0]}, expected dense decoder layers: an expert sees only "
            f"the tokens routed to it, so its importance is not defined here. Fix: use a model without experts."
        )
    for name, module, weight in weights:
        if weight.ndim == 2:
            raise ValueError(
                f"got the matrix {name} in a {type(module).__name__}, expected every matrix of a decoder layer "
                f"in an nn.Linear (GPT-2's Conv1D and custom modules are not supported). Fix: use a model "
                f"whose decoder is built from nn.Linear."
            )


def _is_expert_list(module: nn.Module) -> bool:
    """Whether a module lists several blocks of one class: so experts behind a router are kept."""
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return False
    classes = Counter(type(child) for child in module.children() if is_block(child))
    return any(count > 1 for count in classes.values())


def _check_targets(targets: Sequence[str]) -> None:
    if isinstance(targets, str) or not targets or set(targets) - set(TARGETS):
        raise ValueError(f"got targets={targets!r}, expected a list of one or more of {list(TARGETS)}.")


def _first_layer(last_n_layers: int | None, num_layers: int) -> int:
    """Index of the first layer to tune."""
    if last_n_layers is None:
        return 0
    if not 1 <= last_n_layers <= num_layers:
        raise ValueError(
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
            raise ValueError(
                f"got tied weights: {' and '.join(shared)} are one tensor, expected {name} to own its "
                f"weight. Fix: untie them, or choose other targets or fewer layers."
            )
