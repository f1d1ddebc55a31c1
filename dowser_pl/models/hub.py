"""Whether the hub has a model and can be reached, found out in seconds; and what of it the cache has."""

import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, RepositoryNotFoundError

__all__ = ["cached_snapshot", "reachable"]

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
        ValueError: the hub has it, without config.json.
    """
    return _reachable(name, constants.HF_HUB_OFFLINE)


@lru_cache
def _reachable(name: str, offline: bool) -> str:
    silent = "HF_HUB_OFFLINE is set" if offline else _within(_SECONDS, lambda: _ask(name))
    if silent is None:
        return name
    snapshot = cached_snapshot(name)
    if snapshot is None:
        raise FileNotFoundError(
            f"got {name!r}: there is no such folder in {Path.cwd()}, and as a hub id it could not be fetched "
            f"({silent}). {_SAME}. Fix: correct the name, or go online once so that it is cached (hf download {name})."
        )
    return snapshot


def _ask(name: str) -> str | None:
    """None, if the hub has the model; why it did not answer else."""
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=_SECONDS / 2)
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"got {name!r}: there is no such folder in {Path.cwd()}, and the hub has no such model, or not for you. "
            f"{_SAME}. Fix: correct the name, or log in if it is private or gated (hf auth login)."
        ) from error
    except EntryNotFoundError as error:
        raise ValueError(
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
