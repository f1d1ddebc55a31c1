"""Mixtures of experts inside a decoder layer: which matrices stay frozen whole there, and which targets reach them.

An expert computes only what its router sends it, so that experts and routers are neither scored nor tuned. A mixture is
found by structure: the module that holds the experts, be they stacked in parameters of three dimensions or listed as
blocks of one class, and the router beside them. Experts that every token passes, with "shared" in their name, are
matrices like any other.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from dowser_pl.distributed.tensors import shape_of
from dowser_pl.errors import DowserError

__all__ = ["NOT_MASKED", "has_experts", "is_block", "of_experts", "refuse_reached", "refuse_unpacked", "width_beside"]

NOT_MASKED = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules that are understood and whose weights simply stay frozen."""


def is_block(module: nn.Module) -> bool:
    """Whether a module holds matrices without being one."""
    matrices = (nn.Linear, Conv1D)
    return not isinstance(module, matrices) and any(isinstance(part, matrices) for part in module.modules())


def has_experts(layer: nn.Module) -> bool:
    """Whether a decoder layer holds a mixture of experts."""
    return bool(_experts(layer))


def of_experts(layer: nn.Module) -> dict[str, str]:
    """Every matrix that stays frozen whole because it belongs to a mixture: of experts, routers and gates.

    Args:
        layer: a decoder layer.

    Returns:
        Name within the layer, without ".weight", to the name of the experts; empty for a dense layer. What is joined in
        memory has the names of its halves too, which are those in the files.
    """
    found: dict[str, str] = {}
    modules = dict(layer.named_modules())
    for experts in _experts(layer):
        mixture = experts.rpartition(".")[0]
        start = f"{mixture}." if mixture else ""
        outside = {name for name, part in modules.items() if _is_shared(name.removeprefix(start), part)}
        if not mixture:  # the layer itself: attention and a dense MLP are beside the experts too
            own = {name.partition(".")[0] for name, _ in layer.named_parameters()}
            outside |= {name for name in own if name != experts and "router" not in name}
        for name, weight in layer.named_parameters():
            within = f"{start}{name.removeprefix(start).partition('.')[0]}"
            if len(shape_of(weight)) >= 2 and name.startswith(start) and within not in outside:
                for called in _names(name.removesuffix(".weight")):
                    found.setdefault(called, experts)
    return found


def width_beside(layer: nn.Module, hidden_size: int) -> int:
    """Neurons of a layer with experts that every token passes: of shared experts, or of an MLP beside the experts.

    Args:
        layer: a decoder layer.
        hidden_size: of what it takes in and hands on.
    """
    routed = of_experts(layer)
    return max(
        (
            part.out_features if part.out_features != hidden_size else part.in_features
            for name, part in layer.named_modules()
            if isinstance(part, nn.Linear) and name not in routed and "attn" not in name and "attention" not in name
        ),
        default=0,
    )


def refuse_reached(layer_name: str, experts: Mapping[str, str], targets: Sequence[str], others: Sequence[str]) -> None:
    """Raise if targets mean experts or a router of a layer.

    Args:
        layer_name: of the decoder layer, for the message.
        experts: what `of_experts` found in it.
        targets: kinds and names of matrices; "mlp" means the experts too, "attn" where they are part of attention.
        others: names of the matrices of that layer that are none of them, for the message.

    Raises:
        DowserError: naming these targets and the experts.
    """
    kinds = {"attn" if "attn" in name or "attention" in name else "mlp" for name in (*experts, *experts.values())}
    reaching = [each for each in targets if each in kinds or any(f".{name}".endswith(f".{each}") for name in experts)]
    if not reaching:
        return
    there = [*(["attn"] if "attn" not in kinds else []), *others]
    fix = f"--model.targets '[{there[0]}]', or more of {there}" if there else "use a model whose layers are dense"
    raise DowserError(
        f"got targets={list(targets)!r}, of which {reaching} reach the mixture of experts at "
        f"{layer_name}.{next(iter(experts.values()))}, expected matrices that every token passes: an expert sees only "
        f"the tokens that are routed to it, so that experts and routers stay frozen whole. Fix: {fix}."
    )


def refuse_unpacked(model: nn.Module, quantization: str) -> None:
    """Raise if a model is to be packed that holds stacked experts, which bitsandbytes leaves as they are.

    Args:
        model: as its config makes it.
        quantization: that is asked for.

    Raises:
        DowserError: with the share of the weights that would stay unpacked.
    """
    stacked = {id(each) for part in model.modules() if _is_stack(part) for each in part.parameters(recurse=False)}
    if quantization != "none" and stacked:
        sizes = {id(each): each.numel() for each in model.parameters()}
        share = sum(size for key, size in sizes.items() if key in stacked) / sum(sizes.values())
        raise DowserError(
            f"got quantization={quantization!r} for {type(model).__name__}, {share:.0%} of whose weights are stacked "
            "experts, which bitsandbytes does not pack; expected a model of linear layers. Fix: --model.quantization "
            "none (`plan` tells what that takes), or a model whose layers are dense."
        )


def _names(name: str) -> list[str]:
    start, joined, end = name.rpartition("gate_up_proj")
    return [name, *(f"{start}{half}_proj{end}" for half in ("gate", "up") if joined)]


def _experts(layer: nn.Module) -> list[str]:
    """Names within the layer of modules that hold stacked experts, and of lists of experts."""
    return [name for name, module in layer.named_modules() if name and (_is_stack(module) or _is_list(module))]


def _is_stack(module: nn.Module) -> bool:
    plain = isinstance(module, (nn.Linear, *NOT_MASKED))
    return not plain and any(len(shape_of(weight)) >= 3 for weight in module.parameters(recurse=False))


def _is_list(module: nn.Module) -> bool:
    """Whether it lists several blocks of one class, as experts behind a router are kept."""
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return False
    classes = Counter(type(child) for child in module.children() if is_block(child))
    return any(count > 1 for count in classes.values())


def _is_shared(name: str, part: nn.Module) -> bool:
    return "shared" in name and is_block(part) and not any(map(_is_stack, part.modules()))
