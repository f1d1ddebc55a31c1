"""A run that is killed anywhere and started again ends like one that was not; `last.ckpt` is always its own."""

import json
import shutil

import pytest
import torch
from lightning.pytorch import Callback

from dowser_pl.callbacks import AtomicCheckpointIO, Checkpoints, Dowser, Export, Forgetting, RandomState
from dowser_pl.cli.trainer import DowserTrainer
from dowser_pl.data import Task
from dowser_pl.methods import Magnitude
from dowser_pl.patches.from_checkpoint import read_checkpoint_patch
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


class Killed(BaseException):
    pass


class KillAt(Callback):
    """Stops at the `nth` call of a hook at a step; before every other callback."""

    def __init__(self, hook, step, nth=1):
        self.left = nth
        setattr(self, hook, lambda trainer, *_: self.strike(trainer, step))

    def strike(self, trainer, step):
        self.left -= trainer.global_step == step and not trainer.sanity_checking
        if self.left == 0:
            raise Killed


def fit(model_folder, folder, every=None, kill=None, keep_all=False, data=None, ckpt_path=None, **options):
    """6 steps an epoch, 12 in all."""
    checkpoints = Checkpoints(str(folder / "checkpoints"), every, keep_all)
    callbacks = [
        Dowser(Magnitude(0.1), cache_dir=None, drift=False),
        Export(),
        Forgetting(None),
        checkpoints,
        RandomState(),
    ]
    trainer = DowserTrainer(
        callbacks=[kill, *callbacks] if kill else callbacks,
        default_root_dir=folder,
        num_sanity_val_steps=-1,
        accelerator="cpu",
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, **options},
    )
    try:
        trainer.fit(build_module(model_folder, lr=2e-2), datamodule=data or TinyData(), ckpt_path=ckpt_path)
    except Killed:
        assert kill
    return trainer


def result(folder):
    report = json.loads((folder / "report.json").read_text())
    for key in ("seconds", "peak_memory_bytes", "run"):
        report.pop(key)
    return report, (folder / "model" / "model.safetensors").read_bytes()


STEPS = {"max_epochs": -1, "max_steps": 9}
KILLS = {
    "epoch mode, next epoch": (None, [KillAt("on_train_batch_start", 8)], {}),
    "epoch mode, before the report": (None, [KillAt("on_train_end", 12)], {}),
    "in the last evaluation": (1, [KillAt("on_validation_start", 12)], {}),
    "in the last evaluation, mid epoch": (1, [KillAt("on_validation_start", 9)], STEPS),
    "before the report, mid epoch": (1, [KillAt("on_train_end", 9)], STEPS),
    "two kills in mid accumulation": (
        1,
        [KillAt("on_train_batch_start", 2), KillAt("on_train_batch_start", 2, nth=2)],
        {"accumulate_grad_batches": 2},
    ),
}


LONGER = {"in the last evaluation", "epoch mode, before the report", "before the report, mid epoch"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONGER)) for name in KILLS])
def test_a_killed_run_ends_like_an_unbroken_one(model_folder, tmp_path, name):
    every, kills, options = KILLS[name]
    fit(model_folder, tmp_path / "whole", every, **options)
    for count, kill in enumerate(kills):
        fit(model_folder, tmp_path / "cut", every, kill, ckpt_path="last" if count else None, **options)
        assert (tmp_path / "cut" / "checkpoints" / "last.ckpt").exists()
        assert not (tmp_path / "cut" / "report.json").exists()
    fit(model_folder, tmp_path / "cut", every, ckpt_path="last", **options)
    whole, cut = result(tmp_path / "whole"), result(tmp_path / "cut")
    if not options.get("accumulate_grad_batches"):
        assert any(task["before"] != task["after"] for task in whole[0]["tasks"].values()), "nothing to tell them apart"
    assert whole == cut


@pytest.mark.parametrize("options", [{"max_epochs": 1}, {"max_epochs": -1, "max_steps": 2}], ids=["epochs", "steps"])
def test_a_finished_run_can_write_its_results_again(model_folder, tmp_path, options):
    fit(model_folder, tmp_path, **options)
    first = result(tmp_path)
    (tmp_path / "report.json").unlink()
    shutil.rmtree(tmp_path / "model")
    fit(model_folder, tmp_path, ckpt_path="last", **options)
    assert result(tmp_path) == first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "options"),
    [(None, {}), (None, {"val_check_interval": 0.5}), (None, {"check_val_every_n_epoch": 2}), (4, {})],
)
def test_checkpoints_are_written_on_time_and_at_the_end(model_folder, tmp_path, every, options):
    last = tmp_path / "checkpoints" / "last.ckpt"
    seen = []

    class Watch(KillAt):
        def strike(self, trainer, step):
            seen.append(torch.load(last, weights_only=True)["global_step"] if last.exists() else 0)

    fit(model_folder, tmp_path, every, Watch("on_train_batch_start", 0), max_epochs=3, **options)
    period = every or 6
    assert seen == [step // period * period for step in range(18)]
    assert torch.load(last, weights_only=True)["global_step"] == 18
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_a_fresh_run_sets_the_checkpoint_of_the_earlier_one_aside(model_folder, tmp_path):
    fit(model_folder, tmp_path, max_epochs=1)
    fit(model_folder, tmp_path, None, KillAt("on_train_batch_start", 3), max_epochs=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["previous.ckpt"]
    fit(model_folder, tmp_path, max_epochs=1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_keep_all_keeps_one_file_per_checkpoint(model_folder, tmp_path):
    fit(model_folder, tmp_path, 4, keep_all=True)
    names = ["epoch=0-step=4.ckpt", "epoch=1-step=12.ckpt", "epoch=1-step=8.ckpt", "last.ckpt"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names


def test_a_fast_dev_run_writes_nothing(model_folder, tmp_path):
    fit(model_folder, tmp_path, fast_dev_run=True)
    assert not list(tmp_path.rglob("*"))


def test_resuming_with_another_task_is_refused_before_training(model_folder, tmp_path):
    class MoreTasks(TinyData):
        def evaluation_tasks(self):
            tasks = super().evaluation_tasks()
            return [*tasks, Task("more", "upstream", "exact_match", tasks[1].questions, 3)]

    fit(model_folder, tmp_path, 1, KillAt("on_train_batch_start", 3))
    with pytest.raises(ValueError, match="not measured on more: got colour, yesno in the checkpoint"):
        fit(model_folder, tmp_path, 1, data=MoreTasks(), ckpt_path="last")


def test_a_file_that_is_no_checkpoint_is_answered_in_words(model_folder, tmp_path):
    (tmp_path / "bad.ckpt").write_text("garbage")
    with pytest.raises(ValueError, match=r"bad.ckpt is not a readable checkpoint"):
        fit(model_folder, tmp_path, ckpt_path=str(tmp_path / "bad.ckpt"))


TENSORS = {
    "mask": lambda content: next(iter(content["callbacks"]["Dowser"]["entries"].values()))["mask"],
    "values": lambda content: next(iter(content["callbacks"]["Dowser"]["entries"].values()))["values"],
    "exp_avg": lambda content: content["optimizer_states"][0]["state"][0]["exp_avg"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TENSORS)
def test_a_flipped_bit_of_a_checkpoint_is_told_to_all_who_read_it(model_folder, tmp_path, name):
    fit(model_folder, tmp_path, 1, KillAt("on_train_batch_start", 3))
    last = tmp_path / "checkpoints" / "last.ckpt"
    bits = TENSORS[name](torch.load(last, weights_only=True)).numpy().tobytes()
    whole = last.read_bytes()
    assert whole.count(bits) == 1
    last.write_bytes(whole.replace(bits, bytes([bits[0] ^ 1]) + bits[1:]))
    said = rf"last.ckpt is damaged: got digest \w+ for the tensor '.*{name}', expected \w+. Copy it again"
    with pytest.raises(ValueError, match=said):
        fit(model_folder, tmp_path, 1, ckpt_path="last")
    with pytest.raises(ValueError, match=said):
        read_checkpoint_patch(tmp_path)
    trainer = DowserTrainer(
        callbacks=[Dowser(Magnitude(0.1), cache_dir=None, drift=False)], plugins=[AtomicCheckpointIO()], logger=False
    )
    with pytest.raises(ValueError, match=said):
        trainer.validate(build_module(model_folder), datamodule=TinyData(), ckpt_path=str(last), verbose=False)
    last.write_bytes(whole)
    fit(model_folder, tmp_path, 1, ckpt_path="last")
    assert (tmp_path / "report.json").is_file()
