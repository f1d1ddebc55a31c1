"""A disk without room for what a run writes is told before anything is measured."""

import shutil

import pytest
import torch

from dowser_pl.callbacks import room
from dowser_pl.callbacks.dowser import masks
from dowser_pl.methods import Full, Lora, Magnitude, ModelDowser
from dowser_pl.models.lora import LoraSettings
from tests.tiny_models import make_processor_folder, save_tiny_llava, tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def disk_with(monkeypatch, free):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - free, free))


@pytest.mark.parametrize("method", [ModelDowser(0.1), Magnitude(0.1), Full(), Lora()], ids=lambda m: type(m).__name__)
def test_too_little_room_is_refused_before_anything_is_measured(model, tmp_path, monkeypatch, method):
    disk_with(monkeypatch, 50_000)
    monkeypatch.setattr(masks.MaskBuilder, "measure", lambda _: pytest.fail("measured"))
    module = build_module(model, lora=LoraSettings(r=2) if isinstance(method, Lora) else None)
    with pytest.raises(
        OSError, match=r"5e-05 GB free, expected room .*: the exported model .* GB, checkpoints .*Fix: free"
    ):
        build_trainer(tmp_path / "run", method, export=True).fit(module, datamodule=TinyData())
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "checkpoint, export, keep",
    [
        ("compact", True, "last"),
        ("full", True, "last"),
        ("compact", False, "last"),
        ("full", False, "last"),
        ("compact", False, "best"),
    ],
)
def test_the_estimate_is_near_what_is_written(tmp_path, monkeypatch, checkpoint, export, keep):
    model = tmp_path / "base"
    tiny_llava(hidden_size=256, intermediate_size=512, head_dim=64).save_pretrained(model)
    make_processor_folder(model)
    told = []
    disk_with(monkeypatch, 10**9)
    sizes = room.disk_bytes
    monkeypatch.setattr(room, "disk_bytes", lambda *args: told.append(sizes(*args)) or told[-1])
    epochs = 2 if keep == "best" else 1  # the first is the best one until the second is validated
    options = {"checkpoint": checkpoint, "export": export, "keep": keep, "max_epochs": epochs}
    trainer = build_trainer(tmp_path, Magnitude(0.1), **options)
    trainer.fit(build_module(model), datamodule=TinyData())
    written = {"checkpoints": 2 * size_of(tmp_path / "checkpoints")}
    written["the patch"] = (tmp_path / "patch.safetensors").stat().st_size
    if export:
        written["the exported model"] = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert told == [{name: pytest.approx(size, rel=0.08) for name, size in written.items()}]


def test_no_room_is_asked_for_what_is_not_written(model, tmp_path, monkeypatch):
    disk_with(monkeypatch, 0)
    trainer = build_trainer(tmp_path, Magnitude(0.1), max_epochs=1, fast_dev_run=True)
    trainer.fit(build_module(model), datamodule=TinyData())
    assert torch.isfinite(next(trainer.model.parameters())).all()


def test_no_more_room_is_asked_than_the_optimizer_and_a_run_that_goes_on_need(model, tmp_path, monkeypatch):
    told = []
    sizes = room.disk_bytes
    monkeypatch.setattr(room, "disk_bytes", lambda *args: told.append(sizes(*args)) or told[-1])

    def fit(optimizer, steps, **options):
        module = build_module(model)
        module.optimizer = optimizer
        trainer = build_trainer(tmp_path, Full(), max_epochs=-1, max_steps=steps)
        trainer.fit(module, datamodule=TinyData(), **options)
        return told[-1]["checkpoints"], size_of(tmp_path / "checkpoints")

    plain = fit(lambda parameters: torch.optim.SGD(parameters, lr=0.1), 1)
    asked, written = fit(lambda parameters: torch.optim.AdamW(parameters, lr=0.1), 1)
    assert asked > 2.5 * plain[0]
    (tmp_path / "checkpoints" / "previous.ckpt").unlink()
    again, written = fit(lambda parameters: torch.optim.AdamW(parameters, lr=0.1), 2, ckpt_path="last")
    assert again == asked / 2
    assert again <= written
