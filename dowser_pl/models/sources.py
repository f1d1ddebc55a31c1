"""Where a model comes from: hub id, local folder or the embedded world; and why it could not be had.

Whether the hub has a model and can be reached is found out in seconds, and so is what of it the cache has.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, RepositoryNotFoundError
from safetensors import SafetensorError

from dowser_pl.errors import DowserError, MissingFileError, nearest_path
from dowser_pl.models.layouts import check_folder, foreign

__all__ = ["EMBEDDED", "cached_snapshot", "explained", "find_source", "locate", "reachable", "stored_folder"]


_SECONDS = 10.0  # until an answer must be there, the search for the address included
_SAME = "Expected a folder with config.json, or a hub id that exists and is reachable"


def cached_snapshot(name: str) -> str | None:
    """The folder of the cache that holds a model, if it does.

    Args:
        name: hub id.
    """
    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return str(Path(config).parent) if isinstance(config, str) else None


def reachable(name: str) -> str:
    """`name`, if the hub answers that it has this model; the folder of the cache, if the hub does not answer.

    Raises:
        FileNotFoundError: the hub has no such model, or does not answer and the cache has none.
        DowserError: the hub has it, without config.json.
    """
    return _reachable(name, constants.HF_HUB_OFFLINE)


@lru_cache
def _reachable(name: str, offline: bool) -> str:
    silent = "HF_HUB_OFFLINE is set" if offline else _within(_SECONDS, lambda: _ask(name))
    if silent is None:
        return name
    snapshot = cached_snapshot(name)
    if snapshot is None:
        raise MissingFileError(
            f"got {name!r}: there is no such folder in {Path.cwd()}, and as a hub id it could not be fetched "
            f"({silent}). {_SAME}. Fix: correct the name, or go online once so that it is cached (hf download {name})."
        )
    return snapshot


def _ask(name: str) -> str | None:
    """None, if the hub has the model; why it did not answer else."""
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=_SECONDS / 2)
    except RepositoryNotFoundError as error:
        raise MissingFileError(
            f"got {name!r}: there is no such folder in {Path.cwd()}, and the hub has no such model, or not for you. "
            f"{_SAME}. Fix: correct the name, or log in if it is private or gated (hf auth login)."
        ) from error
    except EntryNotFoundError as error:
        raise DowserError(
            f"got {name!r}, which is on the hub without config.json: it may hold an adapter, GGUF or the layout of "
            f"other code. Expected a model written by save_pretrained. Fix: name the model that it was made from."
        ) from error
    except (HTTPError, OSError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _within(seconds: float, ask: Callable[[], str | None]) -> str | None:
    """What `ask` says or raises, or that it took too long: looking up an address has no time limit of its own."""
    said: list[Any] = []

    def run() -> None:
        try:
            said.append(ask())
        except (ValueError, OSError) as error:
            said.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not said:
        return f"no answer from {constants.ENDPOINT} within {seconds:.0f} seconds"
    if isinstance(said[0], Exception):
        raise said[0]
    answer: str | None = said[0]
    return answer


EMBEDDED = {"embedded:world": Path(__file__).parents[1] / "assets" / "world"}

# Of values of another type in config.json: no ValueError, and newer than the oldest version that is allowed.
_Strict: type[Exception] = getattr(errors, "StrictDataclassError", ValueError)
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def locate(path: str) -> str:
    """The local folder behind `path`, or `path` itself if it can only be a hub id; asks nobody.

    Where the folder that would hold it exists (`runs` of `runs/model`), a path is local, so that a slip of the
    pen never fetches a stranger's model; unless the cache has a model of that id.

    Raises:
        FileNotFoundError: a folder that does not exist or holds no model.
        DowserError: an unknown embedded model, a file instead of a folder, or a folder with something else.
    """
    if path.startswith("embedded:") and path not in EMBEDDED:
        raise DowserError(f"got {path!r}, expected one of the models shipped with the package: {list(EMBEDDED)}.")
    if not path.strip():
        raise DowserError("got an empty model path, expected a hub id, a folder or 'embedded:world'.")
    folder = EMBEDDED.get(path, Path(path).expanduser())
    if folder.is_file():
        _refuse_file(path)
    if folder.is_dir():
        check_folder(path, folder)
        return str(folder)
    if path in EMBEDDED:
        raise MissingFileError(f"{path} is missing from this installation ({folder}). Fix: install dowser_pl again.")
    is_id = _HUB_ID.fullmatch(path) is not None
    if not is_id or (folder.parent.is_dir() and cached_snapshot(path) is None):
        fetch = f", or fetch that model of the hub first (hf download {path})" if is_id else ""
        if "://" in path:
            fetch = f", or give the hub id alone ({'/'.join(path.split('/')[3:5])})"
        raise MissingFileError(
            f"got the folder {path}, which does not exist (looked for {folder.absolute()}{nearest_path(folder)}), "
            f"expected a folder with config.json or a hub id such as 'owner/name'. Fix: correct the path{fetch}."
        )
    return path


def find_source(path: str) -> str:
    """What transformers is to load `path` from: a folder, or a hub id that was found to be there.

    The hub is asked once and briefly, because transformers would try for minutes; out of its reach, what is in the
    cache is taken.

    Raises:
        FileNotFoundError: nothing there, or the hub cannot be reached.
        DowserError: something else is there.
    """
    located = locate(path)
    if Path(located).is_dir():
        return located
    source = reachable(located)
    if source != located:
        check_folder(path, Path(source))
    return source


def stored_folder(path: str) -> Path:
    """The local folder behind `path`: of a hub id, that in the cache. Does not use the network.

    Raises:
        FileNotFoundError: a folder that does not exist or holds no model, or a hub id that the cache does not have.
        DowserError: as `locate`.
    """
    located = locate(path)
    if Path(located).is_dir():
        return Path(located)
    snapshot = cached_snapshot(located)
    if snapshot is None:
        near = nearest_path(Path(path).expanduser())
        raise MissingFileError(
            f"got {path!r}: there is no such folder{near}, and the cache of the hub has no such model; correct the "
            f"name, or fetch the model once (hf download {path})"
        )
    return Path(snapshot)


def _refuse_file(path: str) -> NoReturn:
    what, way = foreign([Path(path).name]) or ("no model by itself", "name its folder")
    raise DowserError(f"got the file {path} ({what}), expected the folder that holds config.json. Fix: {way}.")


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn what transformers raises while it loads `path` into errors that say what to do.

    Raises:
        FileNotFoundError: the hub does not have it or cannot be reached.
        DowserError: damaged or missing files, code that is not trusted, or a package that is not installed.
    """
    try:
        yield
    except DowserError:
        raise
    except SafetensorError as error:
        raise DowserError(
            f"the weights of {path} are damaged ({error}), expected whole safetensors files. Fix: copy or download "
            f"them again."
        ) from error
    except OSError as error:
        raise _unavailable(path, error) from error
    except (ValueError, ImportError, RecursionError, _Strict) as error:
        raise DowserError(_advice(path, error)) from error


def _unavailable(path: str, error: OSError) -> Exception:
    said = _first_line(error)
    if path in EMBEDDED or Path(path).expanduser().is_dir():
        return DowserError(
            f"cannot load {path}: {said}. Expected a folder written by save_pretrained, with config.json, weights "
            f"and the files of the processor. Fix: copy the missing files, or save the model again."
        )
    return MissingFileError(
        f"got {path!r}: there is no such folder in {Path.cwd()}, and as a hub id it could not be fetched ({said}). "
        f"Expected a folder with config.json, or a hub id that exists and is reachable. Fix: correct the name, "
        f"log in if it is private (hf auth login), or go online once so that it is cached."
    )


def _advice(path: str, error: Exception) -> str:
    said = str(error)
    if "trust_remote_code" in said:
        return (
            f"got {path}, which brings its own Python code, expected a model class of transformers. Fix: read that "
            f"code and, if you trust it, set trust_remote_code to true."
        )
    if "torchvision" in said.lower():
        return (
            f"the processor of {path} also reads videos, for which transformers needs torchvision. Fix: pip install "
            f"torchvision. Images are read with Pillow all the same."
        )
    if "does not recognize this architecture" in said:
        return (
            f"got {path}, whose model_type this version of transformers does not know. Fix: correct its config.json, "
            f"or pip install --upgrade transformers."
        )
    if "backend tokenizer" in said:
        return (
            f"got {path} without tokenizer.json or with one that is none, expected the tokenizer that belongs to the "
            f"model. Fix: copy its files from the base model; where it is a tokenizer.model alone, pip install "
            f"sentencepiece tiktoken."
        )
    return (
        f"cannot load {path}: {_first_line(error)}. Expected a folder written by save_pretrained and the packages that "
        f"it needs. Fix: correct or install what is named, or fetch the model again."
    )


def _first_line(error: Exception) -> str:
    said = str(error).strip().replace(":\n", ": ")  # the first line of some only says where
    return said.split("\n", maxsplit=1)[0].rstrip(".")
