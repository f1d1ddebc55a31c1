"""Checkpoints that two ranks write together into a folder, and that any number of ranks goes on from."""

import json
import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemWriter

from dowser_pl.callbacks import AtomicCheckpointIO, Checkpoints
from dowser_pl.commands.patch import main as patch_main
from dowser_pl.distributed.checkpoint import Stored, read_file, read_folder
from dowser_pl.methods import ModelDowser
from dowser_pl.patches.from_checkpoint import read_checkpoint_patch
from dowser_pl.strategies.fsdp2 import FSDP2Strategy
from tests.distributed.fits import difference, fit
from tests.distributed.harness import alone, command_line, outcomes, run
from tests.distributed.test_resume import fit_until, rows_of_steps
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LAST = "checkpoints/last.ckpt"
SETTINGS = {"num_rows": 16, "batch_size": 4, "max_epochs": 1, "optimizer": "adamw"}
GATHERING = [
    "masking.sharded.gather_to_rank_zero",
    "strategies.optimizer_state.gather_to_rank_zero",
    "strategies.sharded.to_rank_zero",
]

OF_THE_MOMENT = {"seconds", "probe_seconds", "dirpath", "best_model_path", "last_model_path", "kth_best_model_path"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def options_of(folders=None, **options):
    """Of a run whose checkpoints are folders, or files; None = of no strategy."""
    strategy = {} if folders is None else {"strategy": FSDP2Strategy(save_distributed_checkpoint=folders)}
    return SETTINGS | {"plugins": [AtomicCheckpointIO()]} | strategy | options


def until(folder, model, step, folders=None, **options):
    """Batches that this rank saw before it stopped. What is written into a folder is not gathered."""
    with ExitStack() as stack:
        for name in GATHERING if folders else []:
            stack.enter_context(patch(f"dowser_pl.{name}", side_effect=AssertionError("gathered")))
        return fit_until(folder, model, step, **options_of(folders, **options))


def to_end(folder, model, folders=None, **options):
    return fit(folder, model, **options_of(folders, **options))


def both(folder, model, **options):
    """Two steps with a file and with a folder, each gone on with to the end; how many of its numbers a rank read."""
    read, real, ended = [], Stored._read, {}

    def count(self, offsets, sizes):
        found = real(self, offsets, sizes)
        read.append((found.nbytes, self.shape.numel() * self.dtype.itemsize))
        return found

    for kind in ("file", "folder"):
        until(folder / kind, model, 2, kind == "folder", **options)
        if os.environ["RANK"] == "0":
            (shutil.copytree if kind == "folder" else shutil.copy)(folder / kind / LAST, folder / f"last {kind}")
        torch.distributed.barrier()
        with patch.object(Stored, "_read", count):
            ended[kind] = to_end(folder / kind, model, kind == "folder", ckpt_path=str(folder / kind / LAST), **options)
    here, everywhere = (sum(each) for each in zip(*read, strict=True))
    return ended["file"], ended["folder"], here / everywhere


def assert_same(one, other, path=()):
    """But for what is of the moment or the place."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one.keys() - OF_THE_MOMENT:
            assert_same(one[key], other[key], (*path, key))
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, (*path, number))
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), path
    else:
        assert one == other or one != one, path


CASES = {
    "compact": {},
    "full": {"checkpoint": "full"},
    "parts trained whole, in half precision": {
        "module": {"also_train": ["projector", "norms", "lm_head"]},
        "precision": "bf16-true",
    },
    "of three ranks": {"batch_size": 6, "num_rows": 18, "optimizer": "sgd", "ranks": 3},
}


@pytest.fixture(scope="module")
def pair(model_folder, tmp_path_factory):
    """`last file`, `last folder` and how a run went on from each."""
    folder = tmp_path_factory.mktemp("pair")
    return folder, run(both, folder, model_folder)


def check_pair(folder, ended, most):
    one, other = read_file(folder / "last file", weights_only=True), read_folder(folder / "last folder")
    assert one["global_step"] == 2 and len(one["optimizer_states"][0]["state"]) > 20
    assert_same(one, other)
    for by_file, by_folder, share in ended:
        assert by_file.steps == by_folder.steps and by_file.seen == by_folder.seen
        assert difference(by_file, by_folder) == 0 and by_file.frozen_digest == by_folder.frozen_digest
        assert 0 < share <= most


@pytest.mark.slow
def test_a_folder_holds_and_brings_back_what_a_file_does(pair):
    check_pair(*pair, 0.6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "compact"])
def test_so_it_does_in_other_forms(model_folder, tmp_path, name):
    options = dict(CASES[name])
    ranks = options.pop("ranks", 2)
    check_pair(tmp_path, run(both, tmp_path, model_folder, ranks=ranks, **options), 0.8 / ranks + 0.2)


@pytest.mark.slow
def test_a_patch_is_exported_from_either(pair):
    one, other = (read_checkpoint_patch(pair[0] / name) for name in ("last file", "last folder"))
    assert one.steps == other.steps == 2 and one.frozen_digest == other.frozen_digest and one.head == other.head
    assert one.changes.keys() == other.changes.keys()
    for name, change in one.changes.items():
        assert torch.equal(change.mask, other.changes[name].mask), name
        assert torch.equal(change.values, other.changes[name].values), name


def scores_of(folder, model, path):
    """Of a checkpoint, in this process."""
    trainer = build_trainer(Path(folder), ModelDowser(0.1), plugins=[AtomicCheckpointIO()])
    module = build_module(Path(model))
    trainer.validate(module, TinyData(), ckpt_path=str(path), verbose=False)
    return module.scores, {name: weight.clone() for name, weight in module.state_dict().items()}


@pytest.mark.slow
def test_one_process_validates_either(pair, model_folder, tmp_path):
    (one, weights), (other, again) = (
        scores_of(tmp_path, model_folder, pair[0] / f"last {k}") for k in ("file", "folder")
    )
    base = build_module(model_folder)
    base.configure_model()
    assert one == other
    assert all(torch.equal(weight, again[name]) for name, weight in weights.items())
    assert not all(torch.equal(weight, again[name]) for name, weight in base.state_dict().items())


def test_another_base_is_refused(pair, tmp_path_factory):
    other = save_tiny_llava(tmp_path_factory.mktemp("other"), seed=1)
    with pytest.raises(ValueError, match="the model that was loaded is not its base"):
        scores_of(tmp_path_factory.mktemp("run"), other, pair[0] / "last folder")

    for outcome in outcomes(
        to_end, tmp_path_factory.mktemp("run"), other, True, ckpt_path=str(pair[0] / "last folder")
    ):
        assert "the model that was loaded is not its base" in outcome.message


def test_a_missing_file_is_told_before_anything_is_trained(pair, model_folder, tmp_path):
    shutil.copytree(pair[0] / "last folder", tmp_path / LAST)
    (tmp_path / LAST / "__1_0.distcp").unlink()
    for outcome in outcomes(to_end, tmp_path, model_folder, True, ckpt_path=str(tmp_path / LAST)):
        assert "got no file of __1_0.distcp, expected" in outcome.message
        assert "Copy the folder again with all its files, or give another checkpoint" in outcome.message


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["compact", "full"])
def test_stopped_and_gone_on_with_in_every_form(model_folder, tmp_path, checkpoint):
    """One process and its file, two ranks and a folder, DDP, three ranks, one process; as if it was never stopped."""
    settings = {"num_rows": 24, "batch_size": 6, "max_epochs": 2, "checkpoint": checkpoint}
    unbroken = alone(to_end, tmp_path / "unbroken", model_folder, **settings)
    folder, resumed = tmp_path / "run", settings | {"ckpt_path": str(tmp_path / "run" / LAST)}
    seen = [alone(until, folder, model_folder, 1, **settings)]
    assert (folder / LAST).is_file()
    for step, ranks, folders in ((2, 2, True), (3, 2, None), (4, 3, True), (5, 1, None), (6, 2, True), (7, 2, False)):
        seen.append(run(until, folder, model_folder, step, folders, ranks=ranks, **resumed))
        assert (folder / LAST).is_dir() == bool(folders)
    end = run(to_end, folder, model_folder, True, **resumed)
    assert (folder / LAST).is_dir()
    rows = rows_of_steps(seen[0]) + [row for each in seen[1:] for row in rows_of_steps(*each)]
    assert rows + rows_of_steps(*(each.seen for each in end)) == rows_of_steps(unbroken.seen)
    for name, mask in unbroken.masks.items():
        assert torch.equal(mask, end[0].masks[name]), name
    assert end[0].frozen_digest == unbroken.frozen_digest
    assert difference(end[0], unbroken) <= 1e-3 * unbroken.way


def killed_in_mid_save(folder, model, **options):
    """The last rank, as it writes its share of the third checkpoint."""
    real, calls = FileSystemWriter.write_data, []

    def write_data(self, plan, planner):
        calls.append(plan)
        if len(calls) == 3 and os.environ["RANK"] == "1":
            (Path(self.path) / "__1_0.distcp").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, plan, planner)

    with patch.object(FileSystemWriter, "write_data", write_data):
        to_end(folder, model, True, patience=1.0, **options)


@pytest.mark.slow
def test_a_kill_in_mid_save_leaves_the_checkpoint_before(model_folder, tmp_path):
    whole = run(to_end, tmp_path / "whole", model_folder, True)
    ended = outcomes(killed_in_mid_save, tmp_path / "run", model_folder)
    assert ended[1].status == -signal.SIGKILL and ended[0].status == 1
    left = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert left == {"last.ckpt", ".last.tmp.ckpt"}
    assert read_folder(tmp_path / "run" / LAST)["global_step"] == 2
    resumed = run(to_end, tmp_path / "run", model_folder, True, ckpt_path="last")
    assert [each.seen for each in resumed] == [each.seen[2:] for each in whole]
    assert difference(whole[0], resumed[0]) == 0 and whole[0].frozen_digest == resumed[0].frozen_digest
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["last.ckpt"]


class KeepAll(Callback):
    """Instead of the trainer's own checkpoints, one more for each."""

    def setup(self, trainer, pl_module, stage):
        own = next(each for each in trainer.callbacks if isinstance(each, Checkpoints))
        trainer.callbacks[trainer.callbacks.index(own)] = Checkpoints(own.dirpath, every_n_steps=2, keep_all=True)


@pytest.mark.slow
def test_earlier_folders_are_kept(model_folder, tmp_path):
    """All of a run, and the last one of the run before; what a kill between two renames left is put back."""
    for _ in range(2):
        run(to_end, tmp_path, model_folder, True, callbacks=(KeepAll(),))
    folder = tmp_path / "checkpoints"
    names = ["epoch=0-step=2.ckpt", "epoch=0-step=4.ckpt", "last.ckpt", "previous.ckpt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [read_folder(folder / name)["global_step"] for name in names] == [2, 4, 4, 4]
    (folder / "last.ckpt").rename(folder / ".last.ckpt.0123abcd.old")
    run(to_end, tmp_path, model_folder, True, ckpt_path="last", callbacks=(KeepAll(),))
    assert sorted(path.name for path in folder.iterdir()) == names


def test_no_file_is_put_into_a_folder(pair, model_folder, tmp_path):
    """By Lightning's own plugin, which would take the name of a folder for a place to write to."""
    shutil.copytree(pair[0] / "last folder", tmp_path / LAST)
    options = {"ckpt_path": str(tmp_path / LAST), "plugins": []}
    for outcome in outcomes(to_end, tmp_path, model_folder, False, **options):
        assert "is a folder of an earlier save, expected a file to replace" in outcome.message
    assert read_folder(tmp_path / LAST)["global_step"] == 2


@pytest.mark.slow
def test_the_command_line_goes_on_from_a_folder_and_looks_into_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verb = ["--config", str(ROOT / "configs/quickstart.yaml"), "--data.num_train=48", "--data.num_eval=6"]
    verb += ["--dowser.probe.num_prompts=8", "--trainer.default_root_dir=run", "--trainer.max_epochs=1"]
    sharded = ["-c", "strategy/fsdp2", "--trainer.strategy.init_args.save_distributed_checkpoint=true"]
    two = [*verb, *sharded, "--trainer.devices=2"]
    run(command_line, "fit", *two, "--export.enabled=false")
    assert (tmp_path / "run" / LAST).is_dir()
    report = (tmp_path / "run/report.json").read_text()
    (tmp_path / "run/report.json").unlink()
    run(command_line, "fit", *two, "--ckpt_path=last", "--export.enabled=false")
    scores = [json.loads(text)["tasks"] for text in (report, (tmp_path / "run/report.json").read_text())]
    assert scores[0] == scores[1]
    alone(command_line, "validate", *verb, "-c", "strategy/single", f"--ckpt_path=run/{LAST}")
    patch_main(["export", "run", "--out", "a.safetensors"])
    patch_main(["export", f"run/{LAST}", "--out", "b.safetensors"])
    one, two = (load_file(tmp_path / name) for name in ("a.safetensors", "run/patch.safetensors"))
    assert one.keys() == two.keys() and all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    assert load_file(tmp_path / "b.safetensors").keys() == one.keys()
