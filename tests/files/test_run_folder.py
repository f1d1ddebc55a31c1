"""A run keeps its folder: nothing of it is replaced unless that is asked for."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from dowser_pl.cli.main import main
from dowser_pl.files.locking import alone
from dowser_pl.files.run_folder import clear, goes_on, refuse_another_run
from tests.cli.test_cli import user_yaml, write_user_folder
from tests.tiny_models import save_tiny_llava


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A user's folder with one finished run, `runs/mine`."""
    folder = tmp_path_factory.mktemp("user")
    write_user_folder(folder)
    model = save_tiny_llava(tmp_path_factory.mktemp("model"))
    user_yaml(folder, model, dowser__method="Magnitude", trainer__enable_progress_bar=False)
    here = Path.cwd()
    os.chdir(folder)
    try:
        main(["fit", "-c", "mine.yaml"])
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def user(finished, tmp_path, monkeypatch):
    """A copy of it, and the working folder."""
    shutil.copytree(finished, tmp_path / "user")
    monkeypatch.chdir(tmp_path / "user")
    return tmp_path / "user" / "runs" / "mine"


def fit(*more):
    main(["fit", "-c", "mine.yaml", *more])


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


REFUSED = {
    "the same command": (),
    "other settings": ("--seed_everything", "7", "--dowser.method", "Random"),
    "a checkpoint of another run": ("--ckpt_path", "elsewhere/last.ckpt"),
    "the checkpoint of the run before": ("--ckpt_path", "runs/mine/checkpoints/previous.ckpt"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_finished_run_is_kept(user, monkeypatch, name):
    last = user / "checkpoints" / "last.ckpt"
    for other in (user.parents[1] / "elsewhere" / "last.ckpt", last.with_name("previous.ckpt")):
        other.parent.mkdir(exist_ok=True)
        shutil.copy(last, other)
    before = contents(user)
    assert {"report.json", "patch.safetensors", "model/model.safetensors", "checkpoints/last.ckpt"} <= set(before)
    monkeypatch.setattr("dowser_pl.module.multimodal.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit) as stop:
        fit(*REFUSED[name])
    said = str(stop.value.code)
    assert "runs/mine holds another run (report.json, report.md" in said and "nothing was changed" in said
    for way in ("--trainer.default_root_dir runs/mine.1)", "--ckpt_path last)", "--overwrite true)"):
        assert way in said
    assert contents(user) == before


def test_a_run_that_has_not_ended_is_kept_as_well(user):
    for name in ("report.json", "report.md", "report.html", "report.png", "answers.jsonl", "patch.safetensors"):
        (user / name).unlink()
    shutil.rmtree(user / "model")
    before = contents(user)
    with pytest.raises(
        SystemExit, match=r"holds a run that has not ended \(checkpoints/last.ckpt\), .*--ckpt_path last"
    ):
        fit()
    assert contents(user) == before


@pytest.mark.slow
def test_a_run_goes_on_in_its_folder(user):
    fit("--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert json.loads((user / "report.json").read_text())["steps"] == 8
    fit("--ckpt_path", "runs/mine/checkpoints/last.ckpt", "--trainer.max_epochs", "3")
    assert json.loads((user / "report.json").read_text())["steps"] == 12
    assert not (user / "checkpoints" / "previous.ckpt").exists()


def test_to_go_on_from_a_checkpoint_that_is_gone_would_begin_anew(user):
    shutil.rmtree(user / "checkpoints")
    with pytest.raises(SystemExit, match="holds another run") as stop:
        fit("--ckpt_path", "last")
    assert "--ckpt_path last" not in str(stop.value.code)


def test_what_is_asked_for_is_replaced_as_a_whole(user):
    last = (user / "checkpoints" / "last.ckpt").read_bytes()
    first = contents(user)
    fit("--overwrite", "true", "--trainer.max_steps", "2", "--patch.enabled", "false", "--export.enabled", "false")
    assert json.loads((user / "report.json").read_text())["steps"] == 2
    assert not (user / "patch.safetensors").exists() and not (user / "model").exists()
    assert (user / "checkpoints" / "previous.ckpt").read_bytes() == last
    assert yaml.safe_load((user / "config.yaml").read_text())["overwrite"] is False
    with pytest.raises(SystemExit, match="holds another run"):
        main(["fit", "-c", "runs/mine/config.yaml"])
    assert contents(user)["report.json"] != first["report.json"]


def test_a_mistake_replaces_nothing(user):
    before = contents(user)
    with pytest.raises(SystemExit):
        fit("--overwrite", "true", "--data.train_file", "gone.json")
    with pytest.raises(SystemExit):
        fit("--overwrite", "true", "--model.last_n_layers", "99")
    del before["config.yaml"]
    after = contents(user)
    assert {name: after.get(name) for name in before} == before


@pytest.mark.slow
def test_what_does_not_train_needs_no_leave(user):
    before = contents(user)
    with alone(user, "run"):  # nor that nobody trains
        main(["validate", "-c", "mine.yaml", "--model.path", "runs/mine/model"])
        main(["predict", "-c", "mine.yaml", "--ckpt_path", "last"])
        probe = "--dowser.method=ModelDowser --dowser.probe.num_prompts=4 --dowser.probe.num_probes=2"
        main(["probe", "-c", "mine.yaml", *probe.split()])
        fit("--trainer.fast_dev_run", "true")
    after = contents(user)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"predictions.jsonl"}


@pytest.mark.slow
def test_two_runs_at_the_same_time(user):
    with alone(user, "run"), pytest.raises(SystemExit, match=f"another run is running in .*: process {os.getpid()} on"):
        fit("--overwrite", "true")
    with pytest.raises(SystemExit), alone(user, "run"):
        fit("--ckpt_path", "last")
    fit("--ckpt_path", "last")


@pytest.mark.slow
def test_a_new_folder_is_told_nothing_of(user):
    fit("--trainer.default_root_dir", "runs/mine.1", "--ckpt_path", "last")
    assert (user.with_name("mine.1") / "report.json").is_file()


LEFT = [
    ["report.json"],
    ["model/config.json"],
    ["model/weights_of_something_else.bin"],
    ["adapter/adapter_config.json"],
    ["patch.safetensors"],
    ["checkpoints/last.ckpt"],
    ["checkpoints/last.ckpt/meta.pt"],
    ["checkpoints/epoch=0-step=4.ckpt"],
    ["checkpoints/.last.ckpt.0a0a.old"],
    ["hpc_ckpt_1.ckpt"],
]
HARMLESS = [
    [],
    ["config.yaml"],
    ["logs/version_0/metrics.csv", "predictions.jsonl"],
    ["checkpoints/previous.ckpt"],
    ["checkpoints/.last.0a0a.tmp.ckpt"],
    ["output.log", ".lock"],
]


def make(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("names", LEFT, ids=str)
def test_what_counts_as_a_run(tmp_path, names):
    make(tmp_path, names)
    with pytest.raises(ValueError, match="--overwrite true"):
        refuse_another_run(tmp_path, None)


@pytest.mark.parametrize("names", HARMLESS, ids=str)
def test_what_does_not(tmp_path, names):
    make(tmp_path, names)
    refuse_another_run(tmp_path, None)
    refuse_another_run(tmp_path, "last")


def test_what_goes_on(tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert not goes_on(run, None) and not goes_on(run, "last") and goes_on(run, "hpc")
    make(run, ["checkpoints/last.ckpt", "checkpoints/previous.ckpt"])
    monkeypatch.chdir(tmp_path)
    assert goes_on(run, "last") and goes_on(run, "run/checkpoints/last.ckpt")
    assert not goes_on(run, run / "checkpoints" / "previous.ckpt") and not goes_on(run, "elsewhere/last.ckpt")
    shutil.move(run / "checkpoints" / "last.ckpt", run / "checkpoints" / ".last.ckpt.0a.old")
    assert goes_on(run, "last")


def test_what_is_cleared(tmp_path):
    make(tmp_path, ["report.json", "curve.png", "model/config.json", "adapter/notes.txt", "mine.txt", "logs/a.csv"])
    clear(tmp_path, str(tmp_path / "model"))
    left = ["adapter/notes.txt", "logs/a.csv", "mine.txt"]
    assert sorted(contents(tmp_path)) == sorted([*left, "model/config.json"]), "the base of the run itself stays"
    clear(tmp_path, "owner/name")
    assert sorted(contents(tmp_path)) == left


@pytest.mark.slow
def test_slurm_goes_on_with_the_same_command(user, monkeypatch):
    """As Lightning does: the job is started again with its own command."""
    for key, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(key, value)
    for key, value in {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit, match="holds another run"):
        fit()
    shutil.copy(user / "checkpoints" / "last.ckpt", user / "hpc_ckpt_1.ckpt")
    fit("--trainer.max_epochs", "2")
    assert torch.load(user / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8
