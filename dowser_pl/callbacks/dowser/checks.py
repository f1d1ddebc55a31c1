"""What would train the wrong thing without a word, or cannot be done with sharded weights, is refused at once."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import LBFGS

from dowser_pl.callbacks.curve import find_curve
from dowser_pl.callbacks.dowser.protection import Content, Form
from dowser_pl.distributed.limits import no_training
from dowser_pl.errors import DowserError
from dowser_pl.masking import BaseModel, Protection
from dowser_pl.masking.base import Changes
from dowser_pl.masking.contract import Files
from dowser_pl.masking.moments import check_moments
from dowser_pl.methods import AfterFit, BeforeFit, EachStep, Lora, Method, NullSpace
from dowser_pl.strategies import FSDP1Strategy
from dowser_pl.strategies.sharded import ShardedStrategy

__all__ = [
    "check_adapters",
    "check_ended",
    "check_files",
    "check_frozen",
    "check_held",
    "check_number",
    "check_optimizers",
    "check_same_base",
    "check_settings",
    "check_sharded",
    "check_state",
    "check_trainer",
    "refuse_quantized",
]


def check_trainer(trainer: Trainer) -> None:
    """Nothing may write weights behind the optimizer, and checkpoints must come back before masks are built.

    Raises:
        DowserError: if a callback averages weights, or for a sharded strategy of Lightning itself.
    """
    if trainer.strategy.restore_checkpoint_after_setup:
        raise DowserError(
            f"{type(trainer.strategy).__name__} is not supported: it restores checkpoints after masks are built. Use "
            "--trainer.strategy auto or ddp, or -c strategy/fsdp2 to shard the model over devices"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging | WeightAveraging):
            raise DowserError(
                f"{type(callback).__name__} writes averaged weights into the model behind the optimizer, frozen "
                "entries included, so nothing could be promised of them; remove it from trainer.callbacks"
            )


def refuse_quantized(weights: Iterable[Tensor]) -> None:
    """Packed integers take no gradient.

    Raises:
        DowserError: if the weights are such.
    """
    if not all(weight.is_floating_point() for weight in weights):
        raise DowserError(
            "the matrices to tune are quantized: they can be scored and run, not tuned. Use --model.quantization "
            "none, tune adapters beside them (-c method/lora), or use the verbs probe, validate and predict"
        )


def check_optimizers(trainer: Trainer, entries: Protection, method: Method) -> None:
    """The optimizers must train what the protection gives them, and no matrix past it; some methods need Adam's.

    Raises:
        DowserError: if a `configure_optimizers` of one's own asks for something else, or the method for another one.
    """
    if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
        raise DowserError(
            "got LBFGS, which asks for several losses within a step, expected an optimizer that makes its step from "
            "one: trained values are written into the model after a step. Fix: such as AdamW"
        )
    if isinstance(method, EachStep) and method.needs_moment:
        for optimizer in trainer.optimizers:
            check_moments(optimizer)
    trained = Counter(
        id(each) for optimizer in trainer.optimizers for group in optimizer.param_groups for each in group["params"]
    )
    wanted = {id(each) for each in entries.parameters()}
    left_out = sum(trained[each] != 1 for each in wanted)
    past = sum(id(weight) in trained and id(weight) not in wanted for weight in entries.weights.values())
    if left_out or past:
        raise DowserError(
            f"the optimizers leave out (or train twice) {left_out} of the {len(wanted)} parameters that the method "
            f"lets them train, and train {past} matrices past it. In your configure_optimizers, build them over "
            "self.trained_parameters(), or self.protectable.parameters()"
        )


def check_number(trained: int, method: Method, whole: list[str]) -> None:
    """Refuse a run in which nothing would move.

    Args:
        trained: entries that the method lets move.
        method: decides on them.
        whole: what is trained without a mask.

    Raises:
        DowserError: if that is nothing at all.
    """
    if not trained and not whole:
        raise DowserError(
            f"got dowser.method {type(method).__name__} with update_ratio {method.update_ratio}, with which no entry "
            "of any matrix may move, and nothing else is trained; expected something to train. Fix: a larger "
            "--dowser.method.update_ratio, such as 0.1"
        )


def check_same_base(base: BaseModel, now: list[str], before: str, digest: str, entries: Protection) -> None:
    """A resumed run must find the model that it began from, in the same precision.

    Args:
        base: of the checkpoint.
        now: what the present run trains without a mask.
        before: digest of the frozen entries when the run began.
        digest: the same now.
        entries: of the checkpoint, in the present run.

    Raises:
        DowserError: saying what must be set as it was.
    """
    if now != base.whole:
        raise DowserError(
            f"the checkpoint trained {base.whole or 'nothing'} without a mask, this run would train "
            f"{now or 'nothing'}; resume with the same --model.also_train"
        )
    name, weight = next(iter(entries.weights.items()))
    was = base.tensors[base.keys[name]][0]
    if was != str(weight.dtype).removeprefix("torch."):
        raise DowserError(
            f"the checkpoint was trained in {was} weights, this run has {weight.dtype}; resume with the same "
            "--trainer.precision and --model.dtype"
        )
    if digest != before:
        raise DowserError(
            "the frozen entries are not those that the run began from; resume with the same --model.path, "
            "--model.dtype, --trainer.precision and --model.also_train"
        )


def check_files(files: Files, unchanged: Callable[[], bool]) -> None:
    """The files of the base must stay what they were: memory may still be those files.

    Args:
        files: that the model was read from.
        unchanged: whether frozen weights in memory are what they were; asked only where a file was written into.

    Raises:
        DowserError: if they are not, naming the file.
    """
    changed = files.changed()
    if not changed:
        return
    named = ", ".join(map(str, changed))
    if any(changed.values()) and not unchanged():
        raise DowserError(
            f"{named} was written into while this run used it, and the weights in memory changed with it; expected the "
            "files of the base to stay as they are. Nothing more is saved. Fix: put the base back and go on from the "
            "last checkpoint (--ckpt_path last), or start again; write other models into folders of their own"
        )
    files.forget()
    rank_zero_warn(
        f"{named} is no longer the file that this run read its base from. The weights in memory are, and it goes on; "
        "but its checkpoints and its patch go with the old file: put that back before they are used"
    )


def check_ended(trainer: Trainer, counts: object) -> None:
    """Refuse to end a fit as if all was well where Lightning left its end out.

    Args:
        trainer: of the fit.
        counts: that the end of training makes; None = it did not come.

    Raises:
        DowserError: if a resumed run had no step left, which `lightning.Trainer` answers by returning at once.
    """
    if counts is None and trainer.limit_train_batches != 0 and trainer.ckpt_path is not None:
        raise DowserError(
            f"{trainer.ckpt_path} holds a run that had no step left, and {type(trainer).__name__} returned before the "
            "end of training: nothing was merged, exported or reported. Use dowser_pl.DowserTrainer, as the command "
            "line does"
        )


def check_sharded(trainer: Trainer, method: Method, update: str, checkpoint: str) -> None:
    """Refuse what would train the wrong thing, or wait for ever.

    Args:
        trainer: its strategy says whether weights are sharded, its precision how gradients are scaled.
        method: that trains.
        update: how it does.
        checkpoint: what it keeps.

    Raises:
        DowserError: saying what to set instead.
    """
    if not isinstance(trainer.strategy, ShardedStrategy):
        return
    in_null_space = isinstance(method, NullSpace) or (isinstance(method, Lora) and method.null_space is not None)
    if in_null_space and isinstance(trainer.strategy, FSDP1Strategy):
        raise DowserError(
            f"got dowser.method {type(method).__name__} in a null space with FSDP1, expected a strategy that keeps "
            "rows of matrices whole: moves are kept off directions of inputs row by row. Use -c strategy/fsdp2, or "
            "--trainer.strategy ddp"
        )
    refused = no_training(method, isinstance(method, AfterFit), find_curve(trainer).active, checkpoint)
    if refused := refused or _other_form(trainer, update):
        raise DowserError(refused)


def _other_form(trainer: Trainer, update: str) -> str | None:
    if update != "compact":
        return (
            f"got update {update!r} with weights that are sharded over processes, expected compact: entries are "
            "trained where they lie. Set --dowser.update compact, or use --trainer.strategy ddp, or one device"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return (
            f"got trainer.precision {trainer.precision}, expected 32-true, bf16-true or bf16-mixed: a gradient scaler "
            "would skip a step on some processes and not on others"
        )
    return None


def check_settings(method: Method, update: Form, checkpoint: Content, calibration_batches: int) -> None:
    """Refuse settings that do not exist, or that the method cannot have.

    Raises:
        DowserError: saying which ones it can.
    """
    if update not in get_args(Form) or checkpoint not in get_args(Content):
        raise DowserError(f"got update {update!r} and checkpoint {checkpoint!r}, expected compact or dense, or full")
    if calibration_batches < 1:
        raise DowserError(f"got {calibration_batches} calibration_batches, expected at least 1")
    if not isinstance(method, BeforeFit | EachStep | AfterFit):
        raise DowserError(
            f"{type(method).__name__} is a Method that does not say when it decides, expected a subclass of BeforeFit "
            "(or Scored, which ranks entries), EachStep or AfterFit of dowser_pl.methods"
        )
    method.settings()  # refused now, and not when the first checkpoint is written
    if isinstance(method, EachStep) and update == "dense":
        raise DowserError(
            f"{type(method).__name__} decides after every step on float32 values of all entries, got update 'dense', "
            "which trains in the precision of the weights; set --dowser.update compact"
        )
    if isinstance(method, Lora) and method.projects and update == "dense":
        raise DowserError(
            f"got Lora with {'preserve' if method.preserve else 'a null space'} and update 'dense', which trains what "
            "the adapters hold, expected compact, which trains values of their own behind a projection; set "
            "--dowser.update compact"
        )
    if isinstance(method, Lora) and method.start is not None and update == "dense":
        raise DowserError(
            "got Lora with start and update 'dense', whose masks are of the base, expected compact, which holds a half "
            "of each adapter as it begins; set --dowser.update compact"
        )


def check_adapters(method: Method, checkpoint: str, adapters: bool) -> None:
    """Refuse adapters without the method `Lora`, and it without them.

    Args:
        method: of the run.
        checkpoint: `compact` or `full`.
        adapters: whether the model has some.

    Raises:
        DowserError: saying what to set.
    """
    if adapters != isinstance(method, Lora):
        raise DowserError(
            f"got dowser.method {type(method).__name__} and model.lora {'adapters' if adapters else None}: adapters "
            "touch every entry of their matrices, so no mask holds with them; set both (-c method/lora) or neither"
        )
    if adapters and checkpoint == "full":
        raise DowserError(
            "a checkpoint of adapters leaves the base out, got checkpoint 'full'; set --dowser.checkpoint compact"
        )


def check_held(trainer: Trainer, pl_module: object, checkpoint: str) -> None:
    """Refuse what a module that is not ours cannot do for the model that it holds.

    Args:
        trainer: its strategy.
        pl_module: the module.
        checkpoint: `compact` or `full`.

    Raises:
        DowserError: saying what to set instead.
    """
    kind = type(pl_module).__name__
    if isinstance(trainer.strategy, ShardedStrategy):
        raise DowserError(
            f"got {type(trainer.strategy).__name__} with {kind}, which holds a model that was loaded whole, expected "
            "a strategy that keeps it whole. Fix: strategy='auto' or 'ddp', or subclass dowser_pl.MultimodalModule"
        )
    if checkpoint == "compact":
        raise DowserError(
            f"got checkpoint 'compact' with {kind}, expected 'full': checkpoints would leave the base out, and only a "
            "dowser_pl.MultimodalModule puts it back when it loads one. Fix: Dowser(..., checkpoint='full')"
        )


def check_state(method: Method, update: Form, state: Mapping[str, Any]) -> None:
    """Refuse to go on with what a checkpoint holds where it was made in another way.

    Raises:
        DowserError: if that was by another method or other hyper-parameters, or in the other form.
    """
    if state["method"] != method.settings():
        raise DowserError(
            f"the checkpoint was trained with {state['method']}, this run asks for {method.settings()}; resume with "
            "the same --dowser.method"
        )
    if state["update"] != update:
        raise DowserError(
            f"the checkpoint was trained with update {state['update']}, whose optimizer states have another form, this "
            f"run asks for {update}; resume with --dowser.update {state['update']}"
        )


def check_frozen(frozen: Changes, digests: Mapping[str, str]) -> None:
    """Refuse to go on with a model in which a frozen entry moved.

    Args:
        frozen: entries, compared with the base where one was kept.
        digests: content hash of all that is frozen, `before` training and `after` it.

    Raises:
        RuntimeError: if one did.
    """
    if frozen.changed or digests["before"] != digests["after"]:
        raise RuntimeError(
            f"{frozen.changed or 'some'} of {frozen.entries} frozen entries changed during training; this is a bug, or "
            "another callback writes weights"
        )
