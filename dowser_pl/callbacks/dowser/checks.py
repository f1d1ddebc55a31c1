"""What would train the wrong thing without a word is refused before the first step."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from dowser_pl.masking import BaseModel, Protection

__all__ = ["check_ended", "check_files", "check_optimizers", "check_same_base", "check_trainer", "refuse_quantized"]


def check_trainer(trainer: Trainer) -> None:
    """Nothing may write weights behind the optimizer, and checkpoints must come back before masks are built.

    Raises:
        ValueError: if a callback averages weights, or for a sharded strategy of Lightning itself.
    """
    if trainer.strategy.restore_checkpoint_after_setup:
        raise ValueError(
            f"{type(trainer.strategy).__name__} is not supported: it restores checkpoints after masks are built. Use "
            "--trainer.strategy auto or ddp, or -c strategy/fsdp2 to spread the model over devices"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging | WeightAveraging):
            raise ValueError(
                f"{type(callback).__name__} writes averaged weights into the model behind the optimizer, frozen "
                "entries included, so nothing could be promised of them; remove it from trainer.callbacks"
            )


def refuse_quantized(weights: Iterable[Tensor]) -> None:
    """Packed integers take no gradient.

    Raises:
        ValueError: if the weights are such.
    """
    if not all(weight.is_floating_point() for weight in weights):
        raise ValueError(
            "the matrices to tune are quantized: they can be scored and run, not tuned. Use --model.quantization "
            "none, tune adapters beside them (-c method/lora), or use the verbs probe, validate and predict"
        )


def check_optimizers(trainer: Trainer, entries: Protection) -> None:
    """The optimizers must train what the protection gives them, and no matrix past it.

    Raises:
        ValueError: if a ``configure_optimizers`` of one's own asks for something else.
    """
    trained = Counter(
        id(each) for optimizer in trainer.optimizers for group in optimizer.param_groups for each in group["params"]
    )
    wanted = {id(each) for each in entries.parameters()}
    left_out = sum(trained[each] != 1 for each in wanted)
    past = sum(id(weight) in trained and id(weight) not in wanted for weight in entries.weights.values())
    if left_out or past:
        raise ValueError(
            f"the optimizers leave out (or train twice) {left_out} of the {len(wanted)} parameters that the method "
            f"lets them train, and train {past} matrices past it. In your configure_optimizers, build them over "
            "self.trained_parameters()"
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
        ValueError: saying what must be set as it was.
    """
    if now != base.whole:
        raise ValueError(
            f"the checkpoint trained {base.whole or 'nothing'} without a mask, this run would train "
            f"{now or 'nothing'}; resume with the same --model.also_train"
        )
    name, weight = next(iter(entries.weights.items()))
    was = base.tensors[base.keys[name]][0]
    if was != str(weight.dtype).removeprefix("torch."):
        raise ValueError(
            f"the checkpoint was trained in {was} weights, this run has {weight.dtype}; resume with the same "
            "--trainer.precision and --model.dtype"
        )
    if digest != before:
        raise ValueError(
            "the frozen entries are not those that the run began from; resume with the same --model.path, "
            "--model.dtype, --trainer.precision and --model.also_train"
        )


def check_files(files: Any, unchanged: Callable[[], bool]) -> None:
    """The files of the base must stay what they were: memory may still be those files.

    Args:
        files: that the model was read from, a `WeightFiles`.
        unchanged: whether frozen weights in memory are what they were; asked only where a file was written into.

    Raises:
        ValueError: if they are not, naming the file.
    """
    changed: dict[Path, bool] = files.changed()
    if not changed:
        return
    named = ", ".join(map(str, changed))
    if any(changed.values()) and not unchanged():
        raise ValueError(
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
        ValueError: if a resumed run had no step left, which `lightning.Trainer` answers by returning at once.
    """
    if counts is None and trainer.limit_train_batches != 0 and trainer.ckpt_path is not None:
        raise ValueError(
            f"{trainer.ckpt_path} holds a run that had no step left, and {type(trainer).__name__} returned before the "
            "end of training: nothing was merged, exported or reported. Use dowser_pl.trainer.DowserTrainer, as the "
            "command line does"
        )
