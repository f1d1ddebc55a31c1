"""Hub ids: an answer in seconds, and the cache where there is none."""

import threading
import time
from pathlib import Path

import pytest
from huggingface_hub.errors import HTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError

from dowser_pl.models import sources
from dowser_pl.models.loading import load_model, load_processor
from dowser_pl.models.sources import find_source
from tests.tiny_models import save_tiny_llava


def cache(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in a cache of the hub's layout."""
    entry = folder / f"models--{name.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(
        sources, "try_to_load_from_cache", lambda *_: str(entry / "snapshots" / ("0" * 40) / "config.json")
    )
    return save_tiny_llava(entry / "snapshots" / ("0" * 40))


def answer(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> list[float]:
    """What the hub says; gives back the time limits of the questions."""
    limits: list[float] = []

    def asked(_: str, timeout: float) -> None:
        limits.append(timeout)
        if error is not None:
            raise error

    monkeypatch.setattr(sources.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sources, "get_hf_file_metadata", asked)
    sources._reachable.cache_clear()
    return limits


def of(kind: type[Exception]) -> Exception:
    """Without the response that its class asks for."""
    return kind.__new__(kind, "said")


@pytest.mark.parametrize("load", [load_model, load_processor])
def test_out_of_reach_is_told_at_once(load: object, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = answer(monkeypatch, ConnectionError("Name or service not known"))
    message = (
        r"got 'owner/none': there is no such folder .* could not be fetched \(ConnectionError: Name or.*hf download"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load("owner/none")
    assert limits == [5.0]  # one question, of seconds


def test_errors_of_the_transport_count_as_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, of(HTTPError))
    with pytest.raises(FileNotFoundError, match="could not be fetched"):
        find_source("owner/none")


def test_an_answer_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up an address may take minutes, whatever time limit the connection has."""
    answer(monkeypatch, None)
    held = threading.Event()
    monkeypatch.setattr(sources, "get_hf_file_metadata", lambda *_, **__: held.wait(60))
    monkeypatch.setattr(sources, "_SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"no answer from https://.* within 0 seconds"):
        find_source("owner/none")
    assert time.monotonic() - start < 30
    held.set()


def test_what_the_hub_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, of(RepositoryNotFoundError))
    with pytest.raises(FileNotFoundError, match=r"the hub has no such model, or not for you.*hf auth login"):
        find_source("owner/none")
    answer(monkeypatch, of(RemoteEntryNotFoundError))
    with pytest.raises(ValueError, match=r"on the hub without config.json.*GGUF"):
        find_source("owner/none")


def test_the_cache_is_taken_where_the_hub_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cache(tmp_path, "owner/tiny", monkeypatch)
    answer(monkeypatch, ConnectionError("no network"))
    assert find_source("owner/tiny") == str(snapshot)
    assert load_model("owner/tiny").config.model_type == "llava"
    answer(monkeypatch, None)
    assert find_source("owner/tiny") == "owner/tiny"
    (snapshot / "config.json").unlink()
    (snapshot / "model.gguf").touch()
    answer(monkeypatch, ConnectionError("no network"))
    with pytest.raises(ValueError, match="GGUF"):
        find_source("owner/tiny")
