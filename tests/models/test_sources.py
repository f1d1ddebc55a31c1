"""Paths of models: what is a folder, what is a hub id, and what is said when there is nothing."""

from pathlib import Path

import huggingface_hub.constants
import pytest

from dowser_pl.models import sources
from dowser_pl.models.loading import load_model, load_processor
from dowser_pl.models.sources import explained, locate


def test_folder_and_hub_id(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path)) == str(tmp_path)
    assert locate("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"


def test_embedded_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources.EMBEDDED["embedded:world"].parts[-3:] == ("dowser_pl", "assets", "world")
    monkeypatch.setitem(sources.EMBEDDED, "embedded:world", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert locate("embedded:world") == str(tmp_path)
    monkeypatch.setitem(sources.EMBEDDED, "embedded:world", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"embedded:world is missing from this installation"):
        locate("embedded:world")


@pytest.mark.parametrize("path", ["./models/none", "/none", "~/none/model", "a/b/c", "models\\none"])
def test_missing_folder(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"got the folder .*, which does not exist"):
        locate(path)


def test_an_address_is_no_hub_id() -> None:
    with pytest.raises(FileNotFoundError, match=r"give the hub id alone \(llava-hf/llava-1.5-7b-hf\)"):
        locate("https://huggingface.co/llava-hf/llava-1.5-7b-hf/tree/main")


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"without config.json \(it holds nothing\)"):
        locate(str(tmp_path))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"without config.json \(it holds notes.txt\)"):
        locate(str(tmp_path))
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "config.json").touch()
    with pytest.raises(FileNotFoundError, match=rf"Fix: name the folder that holds config.json, {tmp_path}/llava\."):
        locate(str(tmp_path))


def test_other_things_that_are_no_model(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter_config.json"
    adapter.touch()
    with pytest.raises(ValueError, match=r"holds an adapter \(LoRA\) only"):
        locate(str(tmp_path))
    with pytest.raises(ValueError, match=r"got the file"):
        locate(str(adapter))
    with pytest.raises(ValueError, match=r"got 'embedded:words', expected one of .*embedded:world"):
        locate("embedded:words")
    with pytest.raises(ValueError, match=r"got an empty model path"):
        locate("")


def test_a_path_whose_folder_exists_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "model").mkdir(parents=True)
    for path, near in (("runs/modle", "runs/model"), ("rums", "runs")):
        with pytest.raises(
            FileNotFoundError, match=rf"{path}, which does not exist .*, did you mean {near}\?\).*hf down"
        ):
            locate(path)
    monkeypatch.setattr(sources, "cached_snapshot", lambda name: f"/cache/{name}")
    assert locate("runs/modle") == "runs/modle"  # which was fetched on purpose


@pytest.mark.parametrize("load", [load_model, load_processor])
def test_hub_out_of_reach(load: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"got 'owner/none': there is no such folder .* could not be fetched"):
        load("owner/none")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("SomeVideoProcessor requires the Torchvision library", r"m also reads videos.*pip install torchvision"),
        (
            "FlashAttention2 is not installed.\nSecond line",
            r"cannot load m: FlashAttention2 is not installed\. Expected .* Fix: .*install what is named",
        ),
    ],
)
def test_missing_package(said: str, message: str) -> None:
    with pytest.raises(ValueError, match=message), explained("m"):
        raise ImportError(said)
