"""What a person names as a tuned model: a folder, a patch, an adapter, or a run that left one of them; and its base."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dowser_pl.commands.model_folder import model_folder
from dowser_pl.errors import DowserError
from dowser_pl.models.layers import check_kind, kind_of
from dowser_pl.models.lora import adapter_beside
from dowser_pl.models.sources import locate
from dowser_pl.module import MultimodalModule
from dowser_pl.patches.loaded import apply_to_model
from dowser_pl.patches.patch import Patch
from dowser_pl.reporting import read_report

__all__ = ["Candidate", "candidates", "dtype_of", "loaded", "named_base", "put_on", "tuned", "tuned_path"]

_PARTS = ("model", "patch.safetensors", "adapter")  # what a run leaves
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Candidate:
    """One model that is to be measured.

    Attributes:
        name: as it was given.
        base: what is loaded: a folder, a hub id, or an embedded model.
        added: the patch or the folder of the adapter that is put on it; None = it is measured as it is.
    """

    name: str
    base: str
    added: Path | None = None

    def dtype(self) -> str | None:
        """The dtype that the base must have for the patch; None where it may be any."""
        return None if self.added is None else dtype_of(self.added)


def candidates(names: list[str]) -> list[Candidate]:
    """The models of a command line; the base of a run, a patch or an adapter that stands there alone comes first.

    Raises:
        DowserError: one is named twice, or its base is not known or not there.
        FileNotFoundError: there is no such model.
    """
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise DowserError(f"got --model {twice[0]} twice, expected every model once")
    found = [_candidate(name) for name in names]
    if len(found) > 1:
        return found
    run = Path(names[0]).expanduser()
    base = found[0].base if found[0].added is not None else named_base(run)
    if base is None:
        return found
    _check_there(base, names[0])
    return [Candidate(base, base), *found]


def _candidate(name: str) -> Candidate:
    path = Path(name).expanduser()
    base, plus, added = name.rpartition("+")
    if plus and not path.exists():
        locate(base)
        return Candidate(name, base, _added(Path(added).expanduser(), name))
    if (path / "report.json").is_file():
        return _of_run(name, path)
    if path.is_file() or ((path / _ADAPTER).is_file() and not (path / "config.json").is_file()):
        base = _base_of(path)
        _check_there(base, name)
        return Candidate(name, base, path)
    locate(name)  # what is no model is told before any is loaded
    return Candidate(name, name)


def _of_run(name: str, run: Path) -> Candidate:
    """A run by its patch, which needs no second load, or where that or its base is not there by its model."""
    for added in (run / "patch.safetensors", run / "adapter"):
        if added.exists() and not ((run / "model").is_dir() and _is_gone(_base_of(added))):
            base = _base_of(added)
            _check_there(base, name)
            return Candidate(name, base, added)
    return Candidate(name, str(tuned_path(name)))


def _added(path: Path, name: str) -> Path:
    path = tuned_path(str(path)) if (path / "report.json").is_file() else path
    if path.is_file() or (path / _ADAPTER).is_file():
        return path
    raise DowserError(
        f"got --model {name}: {path} is neither a patch nor an adapter. Expected BASE+PATCH, such as "
        "my/model+runs/mine/patch.safetensors"
    )


def _base_of(added: Path) -> str:
    base = named_base(added)
    if base is None:
        raise DowserError(f"{added} does not say what its base is. Fix: name it, as --model BASE+{added}")
    return base


def named_base(path: Path) -> str | None:
    """The base that a run, a patch or an adapter was made from, as it says itself; None where it does not.

    Args:
        path: folder of a run or of an adapter, or file of a patch; anything else names none.
    """
    found: Any = None
    if (path / "report.json").is_file():
        found = read_report(path).model
    elif path.is_file():
        with Patch.open(path) as patch:
            found = patch.head["base"]["model"]
    elif (path / _ADAPTER).is_file():
        found = json.loads((path / _ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    return str(found) if found else None


def dtype_of(added: Path) -> str | None:
    """The dtype of the values of a patch, which fits a base of no other; None of anything else, or of several."""
    if not added.is_file():
        return None
    with Patch.open(added) as patch:
        found = {str(each["dtype"]) for each in patch.head["tensors"].values()}
    return found.pop() if len(found) == 1 else None


def _is_gone(base: str) -> bool:
    try:
        locate(base)
    except (DowserError, FileNotFoundError):
        return True
    return False


def _check_there(base: str, name: str) -> None:
    if _is_gone(base):
        raise DowserError(
            f"{name} was tuned from {base}, which is not there. Fix: name the base where it is now, as --model BASE "
            f"--model {name}, or a patch as --model BASE+PATCH"
        )


def tuned_path(name: str) -> Path:
    """A patch, or the folder of a model or of an adapter; of a run what it left.

    Raises:
        DowserError: a run that left nothing.
        FileNotFoundError: there is no such model.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if (path / "report.json").is_file():  # a run
        for part in _PARTS:
            if (path / part).exists():
                return path / part
        raise DowserError(f"{path} is a run without model, patch.safetensors and adapter: there is nothing to compare")
    return path if path.is_dir() else model_folder(name)


@contextmanager
def put_on(network: Any, added: Path | None) -> Iterator[None]:
    """Put a patch or an adapter on a loaded model, and take it off again.

    Args:
        network: its base, as transformers loads it.
        added: the file of the patch or the folder of the adapter; None = nothing.

    Raises:
        DowserError: it does not fit the model.
    """
    if added is None:
        yield
    elif added.is_file():
        with Patch.open(added) as patch:
            undo = apply_to_model(network, patch)
            try:
                yield
            finally:
                undo.remove()
    else:
        with adapter_beside(network, added):
            yield


@contextmanager
def tuned(base: MultimodalModule, what: Path, dtype: Any) -> Iterator[Any]:
    """One tuned model; the base is as it was afterwards.

    Args:
        base: loaded.
        what: of `tuned_path`.
        dtype: to load a model folder in.

    Raises:
        DowserError: if it is not one of the base.
    """
    if what.is_file() or (what / _ADAPTER).is_file():
        with put_on(base.network, what):
            yield base.network
        return
    other = loaded(str(what), dtype).network
    check_kind(other, kind_of(base.network), str(what))
    yield other


def loaded(path: str, dtype: Any) -> MultimodalModule:
    """A model on the GPU, where there is one, to be read from."""
    module = MultimodalModule(path, dtype=dtype)
    module.configure_model()
    module.to("cuda" if torch.cuda.is_available() else "cpu")
    module.eval()
    return module
