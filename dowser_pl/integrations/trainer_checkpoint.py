"""What lies in the folders of a Hugging Face `Trainer` beside weights: masks, values and base, and the patch.

`dowser.safetensors` is in every `checkpoint-N`. A run that goes on from there needs no second importance pass, and the
base is known although the weights are tuned.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerState, TrainingArguments

from dowser_pl import __version__
from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import atomic_path
from dowser_pl.files.sealed import Kind, Sealed, seal
from dowser_pl.functional.masks import unpack
from dowser_pl.masking import BaseModel, Protection
from dowser_pl.masking.base import State
from dowser_pl.patches import save_patch

__all__ = ["FILE", "check_loaded", "find_entries", "load_entries", "save_entries", "write_patch"]

_LOG = logging.getLogger(__name__)

FILE = "dowser.safetensors"
_PARTS = ("mask", "values", "base")
_KIND = Kind(
    "dowser_pl_entries",
    "file of entries",
    "trained entries",
    1,
    cure="resume from another checkpoint",
    other="resume with the version that wrote it",
)


def save_entries(folder: Path, state: State, head: Mapping[str, Any]) -> None:
    """Write masks, values and base into a checkpoint, atomically.

    Args:
        folder: the checkpoint.
        state: name of a matrix -> `mask` (packed bits), `values` and `base` (k,), on the CPU.
        head: what they belong to, `settings` of the callback among it, JSON-able.
    """
    tensors = {f"{name}.{part}": entry[part].contiguous() for name, entry in state.items() for part in _PARTS}
    with atomic_path(folder / FILE, needed_bytes=sum(each.nbytes for each in tensors.values())) as temporary:
        save_file(tensors, temporary, seal(_KIND, head, tensors))


def load_entries(folder: Path, settings: Mapping[str, Any]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `save_entries` wrote: the state, and the head.

    Args:
        folder: the checkpoint.
        settings: of the callback, as the head must have them.

    Raises:
        DowserError: if a bit of it has changed, or it was made with other settings.
    """
    file = Sealed(folder / FILE, _KIND)
    if file.head["settings"] != settings:
        raise DowserError(
            f"{folder} was made with {file.head['settings']}, this run asks for {settings}; resume with the same "
            "settings of DowserCallback"
        )
    state: dict[str, dict[str, Tensor]] = {}
    for key in file.names():
        name, _, part = key.rpartition(".")
        state.setdefault(name, {})[part] = file.verify(key, file.read(key))
    file.close()
    return state, {key: value for key, value in file.head.items() if key != "format"}


def find_entries(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder of the checkpoint that a run goes on from; a callback is not told, so it is looked for.

    Raises:
        DowserError: if no file of ours is there.
    """
    usual = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
    given = args.resume_from_checkpoint
    folders = [*([Path(given)] if isinstance(given, str) else []), usual]
    found = next((folder for folder in folders if (folder / FILE).is_file()), None)
    if found is None:
        raise DowserError(
            f"the run goes on from step {state.global_step}, and {usual} has no {FILE}: masks are never computed on "
            "weights that were already tuned. Fix: resume from a checkpoint that was written with DowserCallback, "
            "which lies in output_dir or is named by TrainingArguments(resume_from_checkpoint=...), or start from the "
            "base"
        )
    return found


def check_loaded(weights: Mapping[str, nn.Parameter], state: State, folder: Path) -> None:
    """The weights must be those of the checkpoint, or the base where the Trainer loads none by other names.

    Args:
        weights: run-time name -> (O, I) matrix.
        state: of the checkpoint.
        folder: it was read from.

    Raises:
        DowserError: if the run goes on from another checkpoint.
    """
    Protection.check_names(weights, state)
    for name, weight in weights.items():
        here = weight.detach()[unpack(state[name]["mask"], weight.shape).to(weight.device)].cpu()
        if not any(here.equal(state[name][part].to(here.dtype)) for part in ("values", "base")):
            raise DowserError(
                f"{name} holds other values than {folder}: the run goes on from another checkpoint. Fix: name that one "
                "in TrainingArguments(resume_from_checkpoint=...) too, or leave it out there"
            )


def write_patch(
    path: Path, base: BaseModel, state: State, tensors: Mapping[str, Tensor], method: Mapping[str, Any]
) -> None:
    """Write what was trained as a small file; where that cannot be, say why: the weights are saved all the same.

    Args:
        path: the file.
        base: that training began from.
        state: name of a matrix -> `mask` and `values`.
        tensors: of the model, with the keys of `base`.
        method: settings of the method that chose the masks.
    """
    head = {"base": base.head, "method": method, "config": None, "scores": None}
    try:
        save_patch(path, base.changes(state, tensors), head | {"created_by": f"dowser_pl {__version__}"})
    except DowserError as error:
        _LOG.warning("No patch: %s", error)
