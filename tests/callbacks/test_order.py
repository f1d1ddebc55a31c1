"""Orders of callbacks that would fail when training ends, or write the wrong file, are refused before it begins."""

from itertools import permutations

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

from dowser_pl.callbacks import (
    Checkpoints,
    Curve,
    Dowser,
    EpochProgress,
    Export,
    FailTogether,
    Forgetting,
    PatchFile,
    Predictions,
    RandomState,
)
from dowser_pl.callbacks.order import BEFORE, check_order
from dowser_pl.cli import main as command_line
from dowser_pl.cli.trainer import DowserTrainer
from dowser_pl.methods import Dare, Magnitude
from dowser_pl.patches.patch import Patch
from dowser_pl.reporting import read_report
from tests.callbacks.test_compact import assert_equal, weights_of
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module

KINDS = {"Dowser": Dowser, "Export": Export, "Forgetting": Forgetting, "PatchFile": PatchFile}
RIGHT = ["Dowser", "Export", "Forgetting", "PatchFile"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def trainer_of(folder, callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_steps": 2, "max_epochs": 1, "limit_val_batches": 1, "num_sanity_val_steps": -1, **options}
    return DowserTrainer(default_root_dir=folder, callbacks=callbacks, accelerator="cpu", **quiet, **options)


def make(names, method=None):
    made = {"Dowser": lambda: Dowser(method or Magnitude(0.1), cache_dir=None, drift=False)}
    return [made.get(name, KINDS.get(name))() for name in names]


def broken(names):
    return [(a, b) for a, b, _ in BEFORE if names.index(a) > names.index(b)]


@pytest.mark.parametrize("names", permutations(RIGHT), ids="-".join)
def test_of_all_orders_those_are_refused_that_the_table_names(tmp_path, names):
    trainer = trainer_of(tmp_path, make(names))
    if not broken(names):
        check_order(trainer)
        return
    message = rf"got trainer.callbacks .*{', '.join(names)}.* Fix: .*{', '.join(RIGHT)}$"
    with pytest.raises(ValueError, match=message) as told:
        check_order(trainer)
    assert all(f"{a} before {b}, as " in str(told.value) for a, b in broken(names))


def refused(model_folder, trainer, message):
    """Before the model is loaded."""
    module = build_module(model_folder)
    with pytest.raises(ValueError, match=message):
        trainer.fit(module, datamodule=TinyData())
    assert module.model is None


@pytest.mark.parametrize("name", RIGHT[1:])
def test_a_fit_says_so_before_the_model_is_loaded(model_folder, tmp_path, name):
    refused(model_folder, trainer_of(tmp_path, make([name, "Dowser"])), f"expected Dowser before {name}, as ")


@pytest.mark.parametrize("name", ["Forgetting", "PatchFile"])
def test_what_tells_of_dowser_needs_it(model_folder, tmp_path, name):
    message = f"{name} tells what the callback Dowser did, and got .* without one"
    refused(model_folder, trainer_of(tmp_path, make([name])), message)


class Mine(Dowser):
    """Lightning takes it for another callback, with a state of its own."""


@pytest.mark.parametrize("second", [Mine, PatchFile, Export])
def test_two_of_a_kind_are_refused(model_folder, tmp_path, second):
    trainer = trainer_of(tmp_path, [*make(RIGHT), second()])
    refused(model_folder, trainer, r"got 2 callbacks (Dowser|PatchFile|Export), expected one")


def test_what_is_switched_off_may_stand_anywhere(tmp_path):
    dowser, *_ = make(["Dowser"])
    check_order(trainer_of(tmp_path, [Export(enabled=False), PatchFile(enabled=False), dowser, Export(), PatchFile()]))


def others(folder):
    kinds = [Curve, EpochProgress, FailTogether, Predictions, RandomState]
    return [Checkpoints(str(folder / "checkpoints")), *(kind() for kind in kinds)]


def run(model_folder, folder, callbacks):
    module = build_module(model_folder)
    trainer_of(folder, callbacks).fit(module, datamodule=TinyData())
    with Patch.open(folder / "patch.safetensors") as patch:
        told = patch.head["scores"]
    return weights_of(module), told, {name: task.after for name, task in read_report(folder).tasks.items()}


@pytest.mark.slow
def test_orders_that_pass_give_the_same_files(model_folder, tmp_path):
    """The other callbacks before those of the table, behind them, and in between; the report before the export."""
    dowser, export, report, patch = (lambda name=name: make([name], Dare(0.3))[0] for name in RIGHT)
    one = run(model_folder, tmp_path / "a", [dowser(), export(), report(), patch(), *others(tmp_path / "a")])
    for name, order in {
        "b": [*reversed(others(tmp_path / "b")), dowser(), report(), export(), patch()],
        "c": [*others(tmp_path / "c")[:3], dowser(), *others(tmp_path / "c")[3:], report(), patch(), export()],
    }.items():
        two = run(model_folder, tmp_path / name, order)
        assert_equal(two[0], one[0])
        assert one[1:] == two[1:] and one[1]
        assert (tmp_path / name / "model" / "config.json").is_file()


class Ours(Callback):
    """Of a user's."""


def test_the_order_of_the_command_line_passes_whatever_a_user_adds(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(command_line.DowserTrainer, "fit", lambda self, *_, **__: seen.append(self))
    command = "fit -c quickstart --trainer.callbacks+=LearningRateMonitor --trainer.callbacks+=ModelCheckpoint "
    command_line.main([*command.split(), "--trainer.default_root_dir", str(tmp_path)])
    (trainer,) = seen
    kinds = {type(each) for each in trainer.callbacks}
    assert kinds > {Dowser, Export, Forgetting, PatchFile, LearningRateMonitor, ModelCheckpoint}
    check_order(trainer)
    trainer.callbacks.append(Ours())
    check_order(trainer)
