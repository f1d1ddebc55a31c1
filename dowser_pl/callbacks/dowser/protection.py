"""Which form of training a method gets: by when it decides, and by how entries are to be kept."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer

from dowser_pl.callbacks.dowser.masks import Deciding
from dowser_pl.distributed import collectives
from dowser_pl.distributed.fsdp1_unit import whole_shapes
from dowser_pl.distributed.tensors import is_spread, shape_of
from dowser_pl.functional.masks import num_trainable
from dowser_pl.masking import (
    BaseModel,
    Changes,
    FrozenEntries,
    Protection,
    ShardedEntries,
    ShardedSoftEntries,
    SoftEntries,
    TrainableEntries,
)
from dowser_pl.masking.base import State
from dowser_pl.masking.shared_state import shared_entries
from dowser_pl.methods import EachStep, Lora, Method
from dowser_pl.planning import Kept, lines, plan_of

__all__ = [
    "Content",
    "Form",
    "announce_plan",
    "check_adapters",
    "check_frozen",
    "check_settings",
    "check_state",
    "leave_base_out",
    "num_trained",
    "protect",
    "protect_again",
    "saved_entries",
]

Form = Literal["compact", "dense"]
Content = Literal["compact", "full"]
_FORMS: dict[str, type[Protection]] = {"compact": TrainableEntries, "dense": FrozenEntries}


def check_settings(method: Method, update: Form, checkpoint: Content, calibration_batches: int) -> None:
    """Refuse settings that do not exist, or that the method cannot have.

    Raises:
        ValueError: saying which ones it can.
    """
    if update not in get_args(Form) or checkpoint not in get_args(Content):
        raise ValueError(f"got update {update!r} and checkpoint {checkpoint!r}, expected compact or dense, or full")
    if calibration_batches < 1:
        raise ValueError(f"got {calibration_batches} calibration_batches, expected at least 1")
    if isinstance(method, EachStep) and update == "dense":
        raise ValueError(
            f"{type(method).__name__} decides after every step on float32 values of all entries, got update 'dense', "
            "which trains in the precision of the weights; set --dowser.update compact"
        )


def check_adapters(method: Method, checkpoint: str, pl_module: Any) -> None:
    """Refuse adapters without the method `Lora`, and it without them.

    Raises:
        ValueError: saying what to set.
    """
    name, adapters = type(method).__name__, pl_module.adapters is not None
    if adapters != isinstance(method, Lora):
        raise ValueError(
            f"got dowser.method {name} and model.lora {pl_module.lora}: adapters touch every entry of their matrices, "
            "so no mask holds with them; set both (-c method/lora) or neither"
        )
    if adapters and checkpoint == "full":
        raise ValueError(
            "a checkpoint of adapters leaves the base out, got checkpoint 'full'; set --dowser.checkpoint compact"
        )


def check_state(method: Method, update: Form, state: Mapping[str, Any]) -> None:
    """Refuse to go on with what a checkpoint holds where it was made in another way.

    Raises:
        ValueError: if that was by another method or other hyper-parameters, or in the other form.
    """
    if state["method"] != method.settings():
        raise ValueError(
            f"the checkpoint was trained with {state['method']}, this run asks for {method.settings()}; resume with "
            "the same --dowser.method"
        )
    if state["update"] != update:
        raise ValueError(
            f"the checkpoint was trained with update {state['update']}, whose optimizer states have another form, this "
            f"run asks for {update}; resume with --dowser.update {state['update']}"
        )


def check_frozen(frozen: Changes, digests: Mapping[str, str]) -> None:
    """Refuse to go on with a model in which a frozen entry moved.

    Args:
        frozen: entries, compared with the base where one was kept.
        digests: content hash of all that is frozen, ``before`` training and ``after`` it.

    Raises:
        RuntimeError: if one did.
    """
    if frozen.changed or digests["before"] != digests["after"]:
        raise RuntimeError(
            f"{frozen.changed or 'some'} of {frozen.entries} frozen entries changed during training; this is a bug, or "
            "another callback writes weights"
        )


def protect(method: Method, update: Form, weights: Mapping[str, nn.Parameter], deciding: Deciding) -> Protection:
    """A model that is about to be trained, its weights being the base.

    Args:
        method: decides.
        update: ``compact`` or ``dense``.
        weights: run-time name -> (O, I) parameter.
        deciding: measures what the method needs.
    """
    if isinstance(method, EachStep):
        return _said(method, _soft(weights)(weights, method, deciding.priors(method)))
    return _said(method, _form(update, weights)(weights, deciding.masks()))


def protect_again(method: Method, update: Form, weights: Mapping[str, nn.Parameter], state: State) -> Protection:
    """A model that was loaded from a checkpoint, its weights being tuned; ``state`` is what the checkpoint holds."""
    if isinstance(method, EachStep):
        return _said(method, _soft(weights).resumed(weights, method, state))
    return _said(method, _form(update, weights).from_state(weights, state))


def _form(update: Form, weights: Mapping[str, nn.Parameter]) -> type[Protection]:
    return ShardedEntries if any(map(is_spread, weights.values())) else _FORMS[update]


def _soft(weights: Mapping[str, nn.Parameter]) -> type[SoftEntries]:
    return ShardedSoftEntries if any(map(is_spread, weights.values())) else SoftEntries


def saved_entries(entries: Protection, apart: bool, checkpoint: Content) -> Mapping[str, Any]:
    """What a checkpoint is to hold of entries: all of it on the first process, or of each its own."""
    base = checkpoint == "full"  # otherwise the model that is loaded gives it back
    return shared_entries(entries, base) if apart else entries.state_dict(base)


def leave_base_out(checkpoint: dict[str, Any], base: BaseModel, owner: str) -> None:
    """Leave the base out of a checkpoint, where it is written.

    Raises:
        RuntimeError: if the state that gives it back is not there; nothing is left out then.
    """
    state = checkpoint["callbacks"].get(owner)
    if not state and collectives.rank() == 0:
        raise RuntimeError(f"{owner} has no state in the checkpoint, expected masks and values; this is a bug")
    checkpoint["state_dict"] = base.left_out(checkpoint["state_dict"])
    if not state:  # the first process writes it
        return
    state["entries"] = {n: {k: v for k, v in each.items() if k != "base"} for n, each in state["entries"].items()}
    checkpoint["without_base"] = owner


def num_trained(pl_module: Any, method: Method) -> int:
    """How many entries of the tuned matrices training will move: all, where the method decides later than before it."""
    ratio = method.update_ratio if method.moment == "before_fit" and method.update_ratio is not None else 1.0
    return sum(num_trainable(ratio, shape_of(layer.weight).numel()) for layer in pl_module.tuned_layers().values())


def announce_plan(pl_module: Any, method: Method, update: Form, optimizer: Optimizer) -> None:
    """Say what training will take in memory, before any of it is taken."""
    kept = Kept(1, method.num_kept) if isinstance(method, EachStep) else Kept()
    with whole_shapes(pl_module.network):
        plan = plan_of(pl_module, num_trained(pl_module, method), update, optimizer, kept)
    rank_zero_info("\n".join(lines(plan)))


def _said(method: Method, entries: Protection) -> Protection:
    """Say how much of the model training may move."""
    total = sum(shape_of(weight).numel() for weight in entries.weights.values())
    rank_zero_info(
        f"{type(method).__name__}: {entries.num_trainable:,} of {total:,} entries in {len(entries.weights)} matrices "
        "are trainable"
    )
    return entries
