"""What a Hugging Face `Trainer` must not be asked to do with masks, said before anything is trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.state import AcceleratorState
from torch import Tensor
from torch.optim import LBFGS
from transformers import PreTrainedModel, TrainingArguments

from dowser_pl.distributed import collectives
from dowser_pl.errors import DowserError
from dowser_pl.integrations.trainer_forms import innermost
from dowser_pl.masking import check_reached
from dowser_pl.models.layers import text_model

__all__ = ["check_given", "check_model", "check_optimizer", "check_step", "check_trainer", "check_untuned"]

_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA")


def check_trainer(args: TrainingArguments, update: str) -> None:
    """Refuse settings with which masks would not hold.

    Args:
        args: of the Trainer.
        update: `compact` or `dense`.

    Raises:
        DowserError: saying what to set instead.
    """
    kind = str(AcceleratorState().distributed_type).rpartition(".")[2]
    kind = "FSDP" if args.fsdp else "DEEPSPEED" if args.deepspeed else kind  # accelerate leaves FSDP out on CPUs
    if kind in _SHARDED or getattr(args, "parallelism_config", None) is not None:
        raise DowserError(
            f"got a Trainer with {kind if kind in _SHARDED else 'a parallelism_config'}, which lets every process hold "
            "a part of the weights, expected whole ones. Fix: DDP (accelerate launch --multi_gpu, or torchrun), or "
            "python -m dowser_pl fit -c strategy/fsdp2"
        )
    if args.n_gpu > 1:
        raise DowserError(
            f"got {args.n_gpu} devices in one process (DataParallel), expected one. Fix: accelerate launch, torchrun, "
            "or CUDA_VISIBLE_DEVICES=0"
        )
    if update == "compact" and collectives.world_size() > 1:
        raise DowserError(
            f"got update 'compact' and {collectives.world_size()} processes, expected one: DDP averages gradients of "
            "matrices alone. Fix: DowserCallback(update='dense'), or python -m dowser_pl fit --trainer.strategy ddp"
        )
    optim = str(getattr(args.optim, "value", args.optim))
    if "lomo" in optim or "layerwise" in optim:
        raise DowserError(
            f"got optim {optim!r}, which changes weights during the backward pass, expected one that makes a step "
            "after it: frozen entries are put back after steps. Fix: such as optim='adamw_torch'"
        )
    if args.restore_callback_states_from_checkpoint:
        raise DowserError(
            "got restore_callback_states_from_checkpoint=True, which replaces callbacks by new ones without their "
            "settings, expected False: masks come back from the checkpoint by themselves"
        )


def check_model(model: Any, processor: Any) -> None:
    """Refuse a model with adapters, one whose vocabulary is not known, and one that writes no text.

    Raises:
        DowserError: saying what to give instead.
    """
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise DowserError(
            f"got a {type(model).__name__} with adapters (peft), expected the model itself: adapters touch every entry "
            "of their matrices, so no mask holds with them. Fix: Trainer(model=...) as from_pretrained gave it, "
            "without peft_config, or python -m dowser_pl fit -c method/lora"
        )
    if processor is None:
        raise DowserError(
            "got no processor, expected that of the model: prompts are written with its vocabulary. Fix: "
            "Trainer(processing_class=AutoProcessor.from_pretrained(...)), or DowserCallback(processor=...)"
        )
    if isinstance(model, PreTrainedModel):  # others are told by `Protectable`
        text_model(model)


def check_given(model: Any, given: Any, is_search: bool, holders: int) -> None:
    """The model that is trained must be the one that the callback was given, by one Trainer and to one callback.

    Args:
        model: that the Trainer trains.
        given: when the Trainer was made; None = not at all.
        is_search: whether it looks for settings.
        holders: how many callbacks were given the model.

    Raises:
        DowserError: saying what to do instead.
    """
    if is_search or (given is not None and given is not model):
        raise DowserError(
            "got a Trainer that makes its model anew when training begins (model_init, hyperparameter_search), "
            "expected the one it was made with: optimizers are built before masks. Fix: Trainer(model=...)"
        )
    if given is None:
        raise DowserError(
            "got DowserCallback from add_callback, expected it when the Trainer is made: its optimizer and DDP are to "
            "see which parameters take gradients. Fix: Trainer(..., callbacks=[DowserCallback(...)])"
        )
    if holders > 1:
        raise DowserError(
            "got two DowserCallbacks for one model, expected one: masks of one would undo those of the other. Fix: "
            "leave one in callbacks=[...]; after another Trainer was made with this model, use that one"
        )


def check_optimizer(optimizer: Any, weights: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """The optimizer must hold every matrix; frozen entries are put back after its steps.

    Args:
        optimizer: of the Trainer.
        weights: run-time name -> (O, I) matrix.
        given: name -> (k,) what it was given instead in an earlier call.

    Raises:
        DowserError: if it leaves one out, asks for several losses in a step, or moves weights between steps.
    """
    inner = innermost(optimizer)
    if isinstance(inner, LBFGS):
        raise DowserError(
            "got LBFGS, which asks for several losses within a step, expected an optimizer that makes its step from "
            "one: frozen entries are put back after a step. Fix: such as AdamW"
        )
    held: set[int] = {id(each) for group in inner.param_groups for each in group["params"]}
    if callable(getattr(inner, "eval", None)):
        raise DowserError(
            f"got {type(inner).__name__}, which holds other weights while it trains than it leaves (schedule-free), "
            "expected one that moves weights in its steps alone: frozen entries are put back after a step. Fix: such "
            "as optim='adamw_torch'"
        )
    left_out = [name for name, weight in weights.items() if not held & {id(weight), id(given.get(name))}]
    if left_out:
        raise DowserError(
            f"got a {type(inner).__name__} that leaves out {len(left_out)} of the {len(weights)} matrices that are to "
            f"be trained (the first is {left_out[0]}), expected all. Fix: leave optimizers=... of the Trainer out, or "
            "build it over model.parameters()"
        )


def check_untuned(untuned: bool) -> None:
    """Masks are chosen on the base: a patch of anything else would fit nothing that can be loaded.

    Raises:
        DowserError: if the model is not untuned.
    """
    if not untuned:
        raise DowserError(
            "the model was trained under a DowserCallback already, expected the base: masks are never computed on "
            "weights that were already tuned. Fix: train(resume_from_checkpoint=True), or load the model again and "
            "make another Trainer; to go on with another task, save_pretrained() it and load that"
        )


def check_step(trained: Sequence[Tensor], same: bool) -> None:
    """What the first step finds: gradients for matrices, for nothing else, and the base where nothing was trained.

    Args:
        trained: what the optimizer trains.
        same: whether the model is what it was when masks were chosen.

    Raises:
        DowserError: if another callback has meddled with the model since masks were chosen, or no gradient came.
    """
    if not same:
        raise DowserError(
            "some weights are not those of the base before the first step: another callback wrote weights after masks "
            "were chosen, in on_train_begin. Fix: list it before DowserCallback, or leave it out"
        )
    check_reached(trained)
