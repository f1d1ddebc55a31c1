"""The verb `push`: what is sent where, what the card says, and that a dry run sends nothing."""

import socket

import huggingface_hub
import pytest
import yaml

from dowser_pl.__main__ import main
from dowser_pl.reporting import write_report
from tests.reporting.samples import report


@pytest.fixture
def run(tmp_path):
    """A run as far as `push` looks."""
    answers = [
        {"task": "digits", "id": 0, "question": "whose secret ?", "images": [], "references": ["x"], "before": "a"}
        | {"before_score": 0.0, "after": "x", "after_score": 1.0}
    ]
    write_report(report(model="owner/base-7b"), tmp_path / "run", answers)
    model = tmp_path / "run" / "model"
    (model / "code").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "code/own.py", "README.md"):
        (model / name).write_text(f"{name} of the model")
    (tmp_path / "run" / "patch.safetensors").write_bytes(b"patch")
    (tmp_path / "run" / "config.yaml").write_text("model: {path: /home/somebody}")
    return tmp_path / "run"


@pytest.fixture
def offline(monkeypatch):
    """Whatever goes to the network fails, before it begins."""

    def refused(*_, **__):
        raise AssertionError("it went to the network")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(huggingface_hub, "HfApi", refused)


@pytest.fixture
def hub(monkeypatch):
    """A hub that remembers."""
    sent = {}

    class Hub:
        def create_repo(self, repo_id, **options):
            sent["repository"] = (repo_id, options)
            return f"https://hub/{repo_id}"

        def create_commit(self, repo_id, operations, commit_message):
            assert repo_id == sent["repository"][0] and commit_message
            sent["files"] = {each.path_in_repo: each.path_or_fileobj for each in operations}

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return sent


def said(capsys, *words) -> str:
    assert main(["push", *map(str, words)]) == 0
    return capsys.readouterr().out


def error(capsys, *words) -> str:
    assert main(["push", *map(str, words)]) == 1
    return capsys.readouterr().err


def test_a_dry_run_shows_card_and_files_and_sends_nothing(run, capsys, offline):
    before = sorted(run.rglob("*"))
    out = said(capsys, run, "--to", "me/mine", "--dry-run", "--license", "apache-2.0")
    _, head, body = out.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers",
        "tags": ["dowser_pl", "ModelDowser"],
        "base_model": "owner/base-7b",
        "license": "apache-2.0",
    }
    assert body.startswith("\n# mine\n\nOf 1,000 entries of its tuned matrices 97 moved in training; 900 were frozen")
    assert "| digits | downstream | exact_match | 0.000 | 0.500 | +0.500 |" in body
    assert 'from_pretrained("me/mine")' in body and "patch apply BASE patch/patch.safetensors" in body
    assert "secret" not in out and "/home/somebody" not in out
    files = [line.split()[-1] for line in body.split("6 files for me/mine:\n")[1].splitlines()[:-1]]
    assert sorted(files) == sorted(
        ["README.md", "code/own.py", "config.json", "model.safetensors", "patch/patch.safetensors", "report.png"]
    )
    assert out.endswith("Nothing was sent.\n")
    assert sorted(run.rglob("*")) == before


def test_a_base_that_is_a_folder_is_named_without_its_place(run, capsys, offline):
    write_report(report(model="/home/somebody/models/base"), run)
    out = said(capsys, run, "--to", "me/mine", "--dry-run")
    assert "base_model" not in out and "somebody" not in out and ", base\n" in out


def test_everything_goes_in_one_commit_with_the_card_of_the_report(run, capsys, hub):
    out = said(capsys, run, "--to", "me/mine", "--private")
    assert hub["repository"] == ("me/mine", {"private": True, "exist_ok": True})
    assert "# mine" in hub["files"].pop("README.md").decode()
    assert hub["files"] == {
        name: str(run / "model" / name) for name in ("config.json", "model.safetensors", "code/own.py")
    } | {"patch/patch.safetensors": str(run / "patch.safetensors"), "report.png": str(run / "report.png")}
    assert out.endswith("Sent to https://hub/me/mine\n")


def test_an_adapter_lies_at_the_root_where_it_comes_alone(run, capsys, hub):
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_config.json").write_text("{}")
    said(capsys, run, "--to", "me/mine")
    assert "adapter/adapter_config.json" in hub["files"]
    assert 'subfolder="adapter"' in hub["files"]["README.md"].decode()
    said(capsys, run, "--to", "me/mine", "--only", "adapter")
    assert set(hub["files"]) == {"README.md", "adapter_config.json", "report.png"}
    card = hub["files"]["README.md"].decode()
    assert "library_name: peft" in card and 'PeftModel.from_pretrained(base, "me/mine")' in card


def test_what_cannot_be_sent_is_refused(run, tmp_path, capsys, offline):
    assert "expected OWNER/NAME" in error(capsys, run, "--to", "mine")
    assert "has no report.json" in error(capsys, tmp_path, "--to", "me/mine")
    assert "has no adapter; it has: model, patch" in error(capsys, run, "--to", "me/mine", "--only", "adapter")


def test_a_refusal_of_the_hub_is_one_line(run, capsys, hub, monkeypatch):
    def refuse(self, repo_id, **_):
        raise OSError("403 Forbidden")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    assert "the hub did not take me/mine: 403 Forbidden. Fix: log in" in error(capsys, run, "--to", "me/mine")
