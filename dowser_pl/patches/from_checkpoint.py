"""A patch from a checkpoint, for a run that never reached its end; the base model is not needed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dowser_pl.distributed.checkpoint import is_folder, read_file, read_folder
from dowser_pl.errors import DowserError, nearest_path
from dowser_pl.masking.base_model import BaseModel, Change

__all__ = ["CheckpointPatch", "read_checkpoint_patch"]


@dataclass(frozen=True, eq=False)
class CheckpointPatch:
    """What a run had changed when it wrote a checkpoint.

    Attributes:
        file: the checkpoint, which may be a folder.
        changes: as `dowser_pl.masking.save_patch` takes them.
        head: `base` and `method`, as it takes them too.
        steps: optimizer steps made until then.
        frozen_digest: content hash of the frozen entries when training began; the same for no other run but one of
            the same base and masks.
    """

    file: Path
    changes: dict[str, Change]
    head: dict[str, Any]
    steps: int
    frozen_digest: str


def read_checkpoint_patch(path: Path) -> CheckpointPatch:
    """Read what a run had changed.

    Args:
        path: the folder of a run, whose `checkpoints/last.ckpt` is taken, or a checkpoint.

    Raises:
        DowserError: if there is none, it cannot be read, no masks are in it, or a trained tensor is not one tensor in
            the files of the model.
    """
    file = path / "checkpoints" / "last.ckpt" if path.is_dir() and not is_folder(path) else path
    if not (file.is_file() or is_folder(file)):
        near = "" if path.exists() else nearest_path(path)
        raise DowserError(
            f"there is no checkpoint {file}{near}; give the folder of a run that wrote one, or the .ckpt file or folder"
        )
    checkpoint = _load(file)
    callbacks = checkpoint.get("callbacks") if isinstance(checkpoint, Mapping) else None
    states = callbacks.values() if isinstance(callbacks, Mapping) else ()
    state = next((each for each in states if isinstance(each, Mapping) and {"base", "entries"} <= set(each)), None)
    if state is None:
        raise DowserError(
            f"{file} holds no masks, expected a checkpoint of a run that protects a model with dowser_pl; for a "
            "tuned model folder use `patch diff`"
        )
    try:
        base = BaseModel(**state["base"])
        changes = base.changes(state["entries"], checkpoint["state_dict"])
        head = {"base": base.head, "method": state["method"]}
        return CheckpointPatch(file, changes, head, checkpoint["global_step"], state["frozen_digest"]["before"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DowserError(
            f"{file} is damaged or was written by another version of dowser_pl ({type(error).__name__}: {error}); "
            "export with the version that wrote it, or give another checkpoint"
        ) from error


def _load(file: Path) -> Any:
    """What a checkpoint holds of the model; tensors of a file are read from the disk when used."""
    if is_folder(file):
        return read_folder(file, weights_only=True, without=("optimizer_states",))
    return read_file(file, weights_only=True, mmap=True)
